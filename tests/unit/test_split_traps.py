"""Small models, each with one thing that a split must get right or refuse: writing in place, constants, odd values."""

import pytest
import torch
from torch import nn

from tests.unit.families import by_hand, images_for
from tlray.models.split import SplitError, find_cut, frozen_prefix, trainable_suffix

torch.set_num_threads(1)


class Rewriting(nn.Module):
    """Its second and third block begin by writing into what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.second = Doubling(4)
        self.third = Doubling(4)
        self.drop = nn.Dropout(0.5, inplace=True)
        self.head = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.third(self.second(self.relu(self.norm(self.stem(images)))))
        return self.head(self.drop(values.mean((2, 3))))


class Doubling(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        values *= 2
        return self.conv(values)


@pytest.mark.parametrize("num_frozen", [1, 2, 3])
def test_a_suffix_never_writes_into_what_it_is_given(num_frozen: int) -> None:
    backbone = by_hand(Rewriting())
    images = images_for(backbone)
    expected = backbone.model(images)
    (values,) = frozen_prefix(backbone, [find_cut(backbone, num_frozen)])(images)
    originals = [value.clone() for value in values]
    suffix = trainable_suffix(backbone, num_frozen)
    assert torch.equal(suffix(*values), expected)
    backbone.model.train()
    suffix(*values)
    assert all(torch.equal(value, original) for value, original in zip(values, originals, strict=True))


def test_a_later_block_does_not_overwrite_what_an_earlier_cut_gave() -> None:
    backbone = by_hand(Rewriting())
    cuts, images = [find_cut(backbone, num_frozen) for num_frozen in (1, 2, 3)], images_for(backbone)
    together = frozen_prefix(backbone, cuts)(images)
    for cut, values in zip(cuts, together, strict=True):
        assert torch.equal(values[0], frozen_prefix(backbone, [cut])(images)[0][0])


class Chain(nn.Module):
    """Two blocks of given functions, with a norm behind each and a head; one norm may be both."""

    def __init__(self, first: nn.Module, second: nn.Module, *, shares_norm: bool = False) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.norm = nn.LayerNorm(8)
        self.last_norm = self.norm if shares_norm else nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)
        self.register_buffer("offset", torch.arange(8.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        doubled = self.offset * 2
        return self.head(self.last_norm(self.second(self.norm(self.first(images)))) + doubled)


class Layer(nn.Module):
    """A linear layer on the pixels or channels; `before` and `after` turn its input and output."""

    def __init__(self, before=lambda values: values, after=lambda values: values, width: int = 8) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.linear = nn.Linear(width, 8)

    def forward(self, values):
        return self.after(self.linear(self.before(values)))


def pixels(images: torch.Tensor) -> torch.Tensor:
    return images.mean((1, 2))


class Passing(nn.Module):
    """What its first block gives goes to the second as it is."""

    def __init__(self, after, before) -> None:
        super().__init__()
        self.first = Layer(pixels, after, width=16)
        self.second = Layer(before)
        self.head = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(images)))


def test_what_does_not_depend_on_the_images_is_made_anew_behind_the_cut() -> None:
    backbone = by_hand(Chain(Layer(pixels, width=16), Layer()))
    cut = find_cut(backbone, 1)
    assert cut.values == ("norm",)
    images = images_for(backbone)
    ((value,),) = frozen_prefix(backbone, [cut])(images)
    assert torch.equal(trainable_suffix(backbone, 1)(value), backbone.model(images))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Chain(Layer(pixels, width=16), Layer(), shares_norm=True), "its parameter norm.weight is used on both sides"),
        (
            Passing(lambda values: values.T, lambda values: values.T),
            r"its value first is \(8, 2\) for 2 images and \(8, 3\) for 3, not a row an image",
        ),
        (Passing(lambda values: (values, values), lambda pair: pair[0] + pair[1]), "its value first is a tuple"),
        (Passing(lambda values: values.long(), lambda values: values.float()), "its value first is torch.int64"),
    ],
    ids=["shared", "transposed", "tuple", "integers"],
)
def test_a_cut_that_cannot_be_is_refused_with_the_reason(model: nn.Module, reason: str) -> None:
    backbone = by_hand(model)
    with pytest.raises(SplitError, match=r"timm/by_hand cannot be split behind block 1 of 2 \(first\): " + reason):
        find_cut(backbone, 1)
    assert find_cut(backbone, 2).num_elements == 8


def test_a_model_that_has_been_moved_since_it_was_traced_splits_as_it_is_now() -> None:
    backbone = by_hand(Chain(Layer(pixels, width=16), Layer()))
    backbone.model.double()  # replaces its buffers, as .to(device) does
    images = images_for(backbone).double()
    (values,) = frozen_prefix(backbone, [find_cut(backbone, 1)])(images)
    assert torch.equal(trainable_suffix(backbone, 1)(*values), backbone.model(images))


class Resizing(nn.Module):
    """Its blocks are told the height and width of the images; the first of them writes into the list it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Popping()
        self.second = Sized()
        self.head = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        _, _, height, width = images.shape
        values = self.stem([images])
        return self.head(self.second(values, height, width))


class Popping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, given: list[torch.Tensor]) -> torch.Tensor:
        return self.conv(given.pop())


class Sized(Layer):
    def forward(self, values: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return super().forward(values.sum((2, 3)) / (height * width))


def test_heights_and_widths_are_constants_of_the_input_size_and_do_not_cross() -> None:
    backbone = by_hand(Resizing())
    cut, images = find_cut(backbone, 1), images_for(backbone)
    assert cut.values == ("stem",)
    ((value,),) = frozen_prefix(backbone, [cut])(images)
    assert torch.equal(trainable_suffix(backbone, 1)(value), backbone.model(images))

"""Text that a user wrote is read as it stands: YAML's core schema in files, the shell word in overrides."""

import json
import math
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.config_texts import EVERY_SECTION, SMALLEST, refusal
from tlray.config.file import dump_config, parse_config
from tlray.config.run import RunConfig
from tlray.config.text import MAX_CHARACTERS, MAX_DEPTH, MAX_VALUES, TextError, read_scalar, read_word, read_yaml
from tlray.errors import ConfigError

FEW = settings(max_examples=60, deadline=None)
PRINTABLE = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=30)
LOOK_LIKE_VALUES = ["2024", "032", "1e5", "0o14", "0x1f", "null", "~", "true", "yes", "12:30", "2020-01-01", ".inf"]
AWKWARD = st.sampled_from([*LOOK_LIKE_VALUES, "<<", *"-&*!#%@`?:|>'\"{}[],="])
WORDS = st.one_of(PRINTABLE, AWKWARD, st.builds("{}{}{}".format, AWKWARD, st.sampled_from(["", " ", " #"]), PRINTABLE))
NUMBERS = st.one_of(st.integers(-(10**18), 10**18), st.floats(allow_nan=False, allow_infinity=False))
PLAIN: Any = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PRINTABLE, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("False", False),
        ("0", 0),
        ("-12", -12),
        ("+12", 12),
        ("0o14", 12),
        ("0x1F", 31),
        ("0.5", 0.5),
        (".5", 0.5),
        ("3e-4", 3e-4),
        ("1E3", 1000.0),
        ("-.inf", -math.inf),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("nULL", "nULL"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("12:30:45", "12:30:45"),
        ("2020-01-01", "2020-01-01"),
        ("<<", "<<"),
        ("1.2.3", "1.2.3"),
        (" 32", " 32"),
        ("32 ", "32 "),
        ("١٢", "١٢"),
        ("=", "="),
        ("-", "-"),
        (".", "."),
    ],
)
def test_a_scalar_is_read_by_the_core_schema(text: str, value: Any) -> None:
    assert read_scalar(text) == value
    assert type(read_scalar(text)) is type(value)


@pytest.mark.parametrize("text", ["032", "-07", "00", "010", "00.5", "01e3"])
def test_a_number_with_a_leading_zero_is_refused_as_nobody_knows_its_base(text: str) -> None:
    with pytest.raises(TextError, match="leading zero"):
        read_scalar(text)
    assert "line 2: " in refusal(f"name: x\nseed: {text}\n")


def test_a_file_reads_what_older_yaml_takes_for_something_else_as_text() -> None:
    text = "a: yes\nb: 2020-01-01\nc: 12:30\nd: 1_000\ne: '032'\n<<: {f: 1}\n"
    assert read_yaml(text) == {"a": "yes", "b": "2020-01-01", "c": "12:30", "d": "1_000", "e": "032", "<<": {"f": 1}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is given twice, first in line 1"),
        ("x: {a: 1, a: 1}", "line 1: the key 'a' is given twice"),
        ("x: {1: 1, '1': 1}", "line 1: the key '1' is given twice"),
        ("{true: 1}", "line 1: 'True' is no key"),
        ("? [a]\n: 1", "line 1: \"['a']\" is no key"),
        ("{1.5: 1}", "line 1: '1.5' is no key"),
        ("a: !!python/object:os.system {}", "line 1: the tag "),
        ("a: !!timestamp 2020-01-01", "line 1: the tag "),
        ("a: !!int '5'", "line 1: the tag "),
        ("a: !mine 5", "line 1: the tag '!mine' is not supported"),
        ("a: *nowhere", "line 1: found undefined alias"),
        ("a: &a [*a]", "nested deeper than 32 levels"),
        ("a: 1\n---\nb: 1", "found another document"),
        ("a: [1", "line 1: "),
        ("a: b: c", "line 1: "),
        ("a:\n\t- b", "line 2: "),
        ('a: "x\\0y"', "a: 'x\\x00y' has the character '\\x00'"),
        ('b: {a: "x\\ny"}', "b.a: 'x\\ny' has the character '\\n'"),
        ('"a\\e": 1', "has the character '\\x1b'"),
        ("a: \x00", "unacceptable character"),
        ("a: .nan", "a: give a finite number, not nan"),
        ("a: [-.inf]", "a.0: give a finite number, not -inf"),
        ("a: 1e999", "a: give a finite number, not inf"),
        (f"a: {'9' * 5000}", "is a number of 5000 digits"),
        (f"a: {'x' * 5000}", "has 5000 characters"),
    ],
)
def test_text_that_means_two_things_or_nothing_is_refused_with_its_place(text: str, reason: str) -> None:
    with pytest.raises(TextError) as caught:
        read_yaml(text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 20_000, f"deeper than {MAX_DEPTH}"),
        ("- " * 20_000, f"deeper than {MAX_DEPTH}"),
        ("{a: " * 20_000, f"deeper than {MAX_DEPTH}"),
        ("[" * 40 + "]" * 40, f"deeper than {MAX_DEPTH}"),
        (BOMB, f"more than {MAX_VALUES} values"),
        ("x" * (MAX_CHARACTERS + 1), f"more than {MAX_CHARACTERS} characters"),
    ],
)
def test_text_made_to_exhaust_a_reader_is_refused_in_little_memory(text: str, reason: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TextError, match=reason):
            read_yaml(text)
        assert tracemalloc.get_traced_memory()[1] < 2**27, "not in proportion to the text"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("word", ["[" * 20_000, "[" * 20_000 + "]" * 20_000, '{"a":' * 20_000])
def test_a_deep_override_is_refused(word: str) -> None:
    assert f"deeper than {MAX_DEPTH}" in refusal(SMALLEST, f"search_space={word}")
    assert "holds no" not in refusal(SMALLEST, "a." * 20_000 + "b=1")


@pytest.mark.parametrize(
    "word",
    [
        "/mnt/run #2",
        "/mnt/a: b",
        "2024",
        "032",
        "{",
        "[",
        "- x",
        "&a",
        "*a",
        "!x",
        "'quoted'",
        "a=b=c",
        " blanks ",
        "true",
        "~",
        "%41",
        "# no comment",
        "null ",
    ],
)
def test_the_value_of_a_text_field_is_the_word_as_it_stands(word: str) -> None:
    config = parse_config(EVERY_SECTION, [f"data.train={word}", f"storage={word}", f"backbones.1.weights={word}"])
    assert (config.data.train, config.storage, config.backbones[1].weights) == (word, word, word)


def test_null_leaves_out_a_text_field_that_may_be_left_out_and_is_text_in_any_other() -> None:
    config = parse_config(SMALLEST, ["data.val=null", "name=null", "storage=null"])
    assert (config.data.val, config.name, config.storage) == (None, "null", "null")


def test_one_word_is_a_list_of_one_where_texts_are_listed() -> None:
    assert parse_config(SMALLEST, ["data.exclude=*.txt"]).data.exclude == ("*.txt",)
    assert parse_config(SMALLEST, ["data.exclude=2024"]).data.exclude == ("2024",)
    assert parse_config(SMALLEST, ['data.exclude=["*.txt", "a #b"]']).data.exclude == ("*.txt", "a #b")
    assert parse_config(SMALLEST, ["data.exclude=[a]", "data.exclude.0=7"]).data.exclude == ("7",)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("training.batch_size=032", "training.batch_size: '032' is a number with a leading zero"),
        ("training.batch_size=32 #", "training.batch_size: give a whole number, not '32 #'"),
        ("training.batch_size=32 ", "training.batch_size: give a whole number, not '32 '"),
        ("training.batch_size='32'", "training.batch_size: give a whole number, not \"'32'\""),
        ("training.batch_size=1_0", "training.batch_size: give a whole number, not '1_0'"),
        ("training.batch_size=32.0", "training.batch_size: give a whole number, not 32.0"),
        ("training.batch_size=true", "training.batch_size: give a whole number, not true"),
        ("training.batch_size=", "training.batch_size: give a whole number, not null"),
        ("training.freeze_bn=yes", "training.freeze_bn: give true or false, not 'yes'"),
        ("training.freeze_bn=1", "training.freeze_bn: give true or false, not 1"),
        ("training.lr=1:30", "training.lr: give a number, not '1:30'"),
        ("training.lr=true", "training.lr: give a number, not true"),
        ("data.val=", "data.val: it is empty: give a value"),
        ("storage=", "storage: it is empty: give a value"),
        ("data.train=a\nb", "data.train: 'a\\nb' has the character '\\n'"),
        ("data.train=a\0b", "data.train: 'a\\x00b' has the character '\\x00'"),
        ("data.train=\udcff", "data.train: '\\udcff' has the character '\\udcff'"),
        ("data.tr\0ain=a", "has the character '\\x00'"),
        (f"data.train={'x' * 5000}", "has 5000 characters, at most 4096"),
        ("strategies=[full #, linear_probe]", "a # would begin a comment"),
        ("strategies=[*a]", "strategies: '[*a]' is no list or object: found undefined alias 'a'; write it as JSON"),
        ('training={"epochs": 1, "epochs": 2}', "training: the key 'epochs' is given twice"),
        ("training={epochs: 1, epochs: 2}", "the key 'epochs' is given twice"),
        ("backbones.²=x", "'²' is not an index of a list of 1"),
        ("strategies=[{strategy: gradual, unfreeze: {-1: 3}}]", "strategies.0.unfreeze.-1: "),
        ("strategies=[{strategy: gradual, unfreeze: {true: 3}}]", "'True' is no key"),
        ("strategies=[{strategy: gradual, unfreeze: {0: 3}}]", "strategies.0.unfreeze.0: "),
        ("strategies=[{strategy: gradual, unfreeze: {}}]", "strategies.0.unfreeze: "),
        ("strategies=[full, full]", "strategies.1 is the same as strategies.0: remove one of them"),
        ("backbones=[a, {id: a}]", "backbones.1 is the same as backbones.0: remove one of them"),
        ("search_space.lr.grid=[1, 0.1, 1.0]", "search_space.lr: the grid has the value 1.0 twice"),
        ("sweep.num_samples=50000", "sweep.num_samples 50000 makes 150000 trials of 1 backbones, 2 strategies and "),
    ],
)
def test_a_word_that_does_not_fit_its_field_is_refused_with_field_and_value(override: str, reason: str) -> None:
    epochs = "training.epochs=3"
    text = SMALLEST if "num_samples" not in override else SMALLEST + "search_space: {lr: {grid: [1, 2]}}\n"
    if "num_samples" in override:
        text += "strategies: [full, {strategy: linear_probe, training: {lr: 1}}]\n"
    message = refusal(text, epochs, override)
    assert reason in message
    assert "\n" not in message


@FEW
@given(WORDS.filter(lambda word: word not in ("", "null")))
def test_any_printable_word_arrives_unchanged_and_survives_the_run_folder(word: str) -> None:
    config = parse_config(SMALLEST, [f"data.train={word}", f"data.exclude={json.dumps([word])}", f"storage={word}"])
    assert (config.data.train, config.data.exclude, config.storage) == (word, (word,), word)
    assert parse_config(dump_config(config)) == config


@FEW
@given(PLAIN)
def test_json_reads_back_as_itself_wherever_anything_may_stand(value: Any) -> None:
    word = json.dumps({"given": value})
    config = parse_config(SMALLEST, ["backbones.0={}", "backbones.0.id=x", f"backbones.0.options={word}"])
    assert config.backbones[0].options == {"given": value}
    assert parse_config(dump_config(config)) == config


@FEW
@given(NUMBERS)
def test_a_number_reads_as_the_number_that_json_reads(value: float) -> None:
    assert read_scalar(json.dumps(value)) == read_word(json.dumps(value)) == value


def outcome(text: str, *overrides: str) -> str:
    """The refusal, if there is one; whatever else is raised fails the test."""
    try:
        parse_config(text, overrides)
    except ConfigError as error:
        return str(error)
    return ""


@FEW
@given(st.one_of(st.text(max_size=60), st.text("{}[]:,-?&*!|>'\"%#@` \n\tab01", max_size=60)))
def test_no_text_at_all_ends_in_anything_but_one_line(text: str) -> None:
    assert "\n" not in outcome(text)


FIELDS = [f"{name}.{inner}" for name, field in RunConfig.model_fields.items() for inner in ("", "0", "x", "lr", "id")]


@FEW
@given(st.sampled_from(FIELDS), st.one_of(WORDS, st.text("{}[]:,-?&*!|>'\"%#@` \n\tab01", max_size=30)))
def test_no_override_ends_in_anything_but_one_line(key: str, word: str) -> None:
    assert "\n" not in outcome(SMALLEST, f"{key.strip('.')}={word}")

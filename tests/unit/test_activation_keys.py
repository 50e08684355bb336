"""Keys of activations: everything they depend on is in the digest, and nothing else."""

from dataclasses import asdict, fields

import pytest
from activation_samples import KEY, run_python, sample_key

from tlray.activations.keys import ActivationKey

CHANGES = {
    "backbone": "timm/test_resnet.r160_in1k",
    "options": '{"drop_rate": 0.1}',
    "weights_hash": "1" * 64,
    "num_frozen": 5,
    "preprocessing": '{"input_size": [32, 32], "resize": 37}',
    "augmentation": "light",
    "view": 1,
    "dtype": "float32",
    "precision": "bfloat16",
    "split_version": 2,
    "pixels": '{"version": 1, "max_side": 512}',
}


@pytest.mark.parametrize("field", [field.name for field in fields(ActivationKey)])
def test_a_change_of_any_field_changes_the_digest(field: str) -> None:
    assert sample_key(**{field: CHANGES[field]}).digest != KEY.digest


def test_the_label_the_split_and_the_trial_are_not_in_a_key() -> None:
    assert {field.name for field in fields(ActivationKey)} == CHANGES.keys()


def test_a_digest_is_32_hexadecimal_digits_and_stays_what_it_is() -> None:
    # activations of earlier runs are found by it; what changes it makes them all be computed again
    assert KEY.digest == "97b092137e035d396ab39cf1e6b14352"


def test_the_order_and_the_spaces_of_json_do_not_matter() -> None:
    assert sample_key(preprocessing='{"resize":36,"input_size":[32,32]}').digest == KEY.digest


@pytest.mark.parametrize("hash_seed", ["0", "1234"])
def test_another_process_computes_the_same_digest(hash_seed: str) -> None:
    program = "from activation_samples import KEY; print(KEY.digest)"
    assert run_python(program, PYTHONHASHSEED=hash_seed).strip() == KEY.digest


def test_a_key_survives_being_written_down() -> None:
    assert ActivationKey(**asdict(KEY)) == KEY
    assert KEY.spec()["preprocessing"] == {"input_size": [32, 32], "resize": 36}

"""The optional libraries on a machine without their packages; runs everywhere."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.unit.library_models import FACTS
from tlray.catalogue.libraries import open_clip, pytorchcv, tlray, ultralytics
from tlray.catalogue.libraries.architectures.keras_weights import resnet_v2_state
from tlray.catalogue.libraries.optional import load
from tlray.errors import BackboneError

LIBRARIES = {"open_clip": open_clip, "pytorchcv": pytorchcv, "ultralytics": ultralytics}
ALL = [*LIBRARIES.values(), tlray]


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*LIBRARIES, "h5py"]:
        for module in [module for module in sys.modules if module == name or module.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("without_packages")
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_model_of_an_absent_library_is_refused_with_the_name_of_the_extra(name: str) -> None:
    library = LIBRARIES[name]
    with pytest.raises(BackboneError, match=rf"pip install 'tlray\[{library.EXTRA}\]'"):
        library.construct(library.names()[0], None, "none", 224, {}, 2)


@pytest.mark.usefixtures("without_packages")
def test_a_keras_file_without_h5py_is_refused_with_the_name_of_the_extra(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"pip install 'tlray\[keras\]'"):
        resnet_v2_state(tmp_path / "weights.h5")


@pytest.mark.usefixtures("without_packages")
@pytest.mark.parametrize("library", ALL, ids=lambda library: library.LIBRARY)
def test_an_absent_library_still_says_which_models_it_has(library: ModuleType) -> None:
    for name in library.names():
        facts = library.facts(name, None)
        assert facts["id"] == f"{library.LIBRARY}/{name}"
        assert facts["extra"] == library.EXTRA
        assert facts["num_params"] > 0
        assert facts.keys() <= FACTS
        assert facts["weights"] == library.tags(name)


def test_a_package_that_itself_lacks_one_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import a_package_that_nobody_has")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has"):
        load("half_installed", extra="half")

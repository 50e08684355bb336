"""What a file is by its first and last bytes, whatever its name: a web page saved as weights is called a web page.

    check_kind("s3://bucket/w.pth", path)     # BackboneError that says what it is, and the remedy

No torch here: a mistake shows before anything is built.
"""

import zipfile
from pathlib import Path

from tlray.errors import BackboneError

PICKLED_SUFFIXES = (".pth", ".pt", ".bin", ".tar")
SAFETENSORS = ".safetensors"
SUFFIXES = (SAFETENSORS, *PICKLED_SUFFIXES)
START_BYTES = 1024
LARGEST_HEADER = 100_000_000  # bytes of a safetensors file's header: the format's own bound
MOST_UNPACKED = 2  # times the file's size: torch.save does not compress, so more is a bomb
ZIP, PICKLE = b"PK\3\4", b"\x80"
HTML = (b"<!doctype html", b"<html", b"<head", b"<body")
STARTS = {  # what a file begins with -> (what it is, what to do)
    b"\x1f\x8b": ("gzip-compressed", "unpack it first: gunzip"),
    b"BZh": ("bzip2-compressed", "unpack it first: bunzip2"),
    b"\xfd7zXZ\0": ("xz-compressed", "unpack it first: unxz"),
    b"\x28\xb5\x2f\xfd": ("compressed with Zstandard", "unpack it first: unzstd"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "unpack it first"),
    b"Rar!": ("a RAR archive", "unpack it first"),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file, as Keras writes them", "convert it to .safetensors"),
    b"\x93NUMPY": ("a NumPy array", "save the state dict of the model instead"),
    b"\x89PNG": ("an image", "name the weights file"),
    b"\xff\xd8\xff": ("an image", "name the weights file"),
    b"%PDF": ("a PDF document", "name the weights file"),
    b"GGUF": ("a GGUF file of a language model", "name the weights of the backbone"),
    b"\x7fELF": ("a program", "name the weights file"),
}
AGAIN = "fetch it again, from the address of the file itself"


def check_kind(uri: str, path: Path) -> None:
    """BackboneError unless the file at `path` begins, and ends, as the ending of its name `uri` promises."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(START_BYTES)
    wants_safetensors = Path(uri).suffix.lower() == SAFETENSORS
    format = "safetensors" if wants_safetensors else "torch.save"
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and 2 <= header <= LARGEST_HEADER:  # first: its length may begin like anything else
        _check_safetensors(uri, header, size, wants_safetensors)
    elif problem := other_kind(start):
        raise BackboneError(f"weights {uri!r}: not a whole {format} file, but {problem}")
    elif wants_safetensors and start.startswith((ZIP, PICKLE)):
        raise BackboneError(
            f"weights {uri!r}: not a whole safetensors file, but one of torch.save under another name: "
            f"rename it to {Path(uri).stem}.pth"
        )
    elif start.startswith(ZIP):
        _check_archive(uri, path, size)


def other_kind(start: bytes) -> str:
    """What a file that begins so is, and what to do, where that is surely no weights file; else ""."""
    if not start:
        return f"an empty file: {AGAIN}"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs.github.com/"):
        return "a git-LFS pointer, which stands for the file in a repository: `git lfs pull` fetches the file itself"
    if text.startswith(HTML):
        return f"a web page: {AGAIN} (a login or an error may have been sent instead)"
    if text.startswith((b"<?xml", b"<error")):
        found = start.partition(b"<Code>")[2].partition(b"</Code>")[0].decode("ascii", "replace")
        return f"an XML document{f', the error {found!r} of an object store' if found else ''}: {AGAIN}"
    if text.startswith((b"{", b"[")):
        return f"JSON text: {AGAIN}, or name the weights beside it"
    for bytes_, (what, remedy) in STARTS.items():
        if start.startswith(bytes_):
            return f"{what}: {remedy}"
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it first (tar xf), and name the weights in it"
    if _is_text(start):
        return f"a text that begins with {start[:40].decode('utf-8', 'replace').strip()!r}: {AGAIN}"
    return ""


def _is_text(start: bytes) -> bool:
    try:
        text = start[:200].decode()
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\t\r\n" for char in text)


def _check_safetensors(uri: str, header: int, size: int, wants_safetensors: bool) -> None:
    if not wants_safetensors:
        raise BackboneError(
            f"weights {uri!r}: not a whole torch.save file, but one of safetensors under another name: "
            f"rename it to {Path(uri).stem}{SAFETENSORS}"
        )
    if size < 8 + header:
        raise BackboneError(
            f"weights {uri!r}: not a whole safetensors file: it has {size} bytes and its header alone {header}; {AGAIN}"
        )


def _check_archive(uri: str, path: Path, size: int) -> None:
    """A zip file: torch.save's has one folder with data.pkl in it and compresses nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            names, unpacked = archive.namelist(), sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        raise BackboneError(
            f"weights {uri!r}: not a whole torch.save file: its end is missing or damaged ({size} bytes are here); "
            f"{AGAIN}"
        ) from None
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise BackboneError(
            f"weights {uri!r}: a TorchScript program, which is code; save the tensors only: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        )
    if "data.pkl" not in inner:
        raise BackboneError(
            f"weights {uri!r}: not a whole torch.save file, but a zip archive of {len(names)} files "
            f"({', '.join(names[:3])}): unpack it, and name the weights in it"
        )
    if unpacked > MOST_UNPACKED * size:
        raise BackboneError(f"weights {uri!r}: refused, {size} bytes that would unpack to {unpacked}")

"""What a run has to say of damage that it came across and got over: one small file a note, which any process may leave.

    leave_note(run_uri, "trials/003-full: epoch-0004.safetensors is damaged; epoch 4 is trained again")
    for note in read_notes(run_uri): print(note)

A note's name is the checksum of its text: the same note left twice is one, and a damaged one is known as such.
"""

from tlray import storage
from tlray.storage.sealed import checksum_of

FOLDER = "notes"


def leave_note(run_uri: str, text: str) -> None:
    data = text.encode()
    storage.write_bytes(storage.join(run_uri, FOLDER, f"{checksum_of(data)}.txt"), data)


def read_notes(run_uri: str) -> tuple[str, ...]:
    """In the order in which they were left."""
    try:
        files = sorted(storage.list_files(storage.join(run_uri, FOLDER)), key=lambda file: (file.modified, file.uri))
    except storage.NotFoundError:
        return ()
    return tuple(_read(file.uri) for file in files if file.uri.endswith(".txt"))


def _read(uri: str) -> str:
    data = storage.read_bytes(uri)
    is_whole = uri.endswith(f"/{checksum_of(data)}.txt")
    return data.decode(errors="replace") if is_whole else f"{uri} is damaged: what this note said is lost"

"""Files that systems and tools leave in every folder: they are no images, make no class, and are skipped and counted.

is_litter("cats/Thumbs.db"), is_litter("__MACOSX/cats/._1.jpg"), is_litter(".ipynb_checkpoints/1.jpg")
"""

NAMES = frozenset(
    (
        # Windows, and old photo managers on it
        "thumbs.db",
        "thumbs.db:encryptable",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "iconcache.db",
        "zbthumbnail.info",
        "picasa.ini",
        "$recycle.bin",
        "system volume information",
        "recycler",
        # macOS; most of its names begin with a dot
        "__macosx",
        "icon\r",
        # Linux
        "lost+found",
        # network storage: Synology, QNAP
        "@eadir",
        "@tmp",
        "@recycle",
        "#recycle",
        "#snapshot",
        "@recently-snapshot",
        "@sharebin",
        # tools
        "__pycache__",
        "_success",
        "_committed",
        "_started",
    )
)
STARTS = (
    ".",  # .DS_Store, ._1.jpg, .directory, .ipynb_checkpoints, .dropbox, .Trash-1000, .nfs0001
    "~$",  # an open document of Office
    "_committed_",
    "_started_",
)
ENDS = ("_$folder$",)  # Hadoop's mark of a folder on S3


def is_litter(path: str) -> bool:
    """Whether a name of the path, or a folder in it, is known not to be the user's; hidden names are litter too."""
    return any(_is_litter_name(name) for name in path.split("/"))


def _is_litter_name(name: str) -> bool:
    lower = name.lower()
    return lower in NAMES or (lower.startswith(STARTS) and name not in (".", "..")) or lower.endswith(ENDS)

"""Where the rows of a Parquet file end, from its footer: Thrift's compact protocol, and of it no more than that takes.

pyarrow has it too, but aborts the process where a footer is damaged in certain ways.
"""

from collections.abc import Callable, Mapping

MAX_DEPTH = 40  # of structures in each other; Parquet's own have seven
STOP, TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(13)
FIXED = {TRUE: 0, FALSE: 0, BYTE: 1, DOUBLE: 8}  # bytes of a field's value
VARINTS = (I16, I32, I64)
# numbers of fields, as parquet.thrift has them
ROW_GROUPS, COLUMNS, COLUMN, COMPRESSED_SIZE, DATA_PAGE, DICTIONARY_PAGE = 4, 1, 3, 7, 9, 11

Take = Callable[[int], None]  # the type of a value -> reads it


def end_of_rows(footer: bytes) -> int:
    """The byte behind the last column of any group of rows, 0 where there are none; ValueError for a damaged footer."""
    reader = _Reader(footer)
    end = 0

    def column(kind: int) -> None:
        nonlocal end
        found: dict[int, int] = {}

        def number(name: int) -> Take:
            def take(kind: int) -> None:
                found[name] = reader.whole(kind)

            return take

        reader.struct({name: number(name) for name in (COMPRESSED_SIZE, DATA_PAGE, DICTIONARY_PAGE)})
        if not {COMPRESSED_SIZE, DATA_PAGE} <= found.keys():
            raise ValueError("a column without its place")
        start = min(found[DATA_PAGE], found.get(DICTIONARY_PAGE) or found[DATA_PAGE])
        end = max(end, start + found[COMPRESSED_SIZE])

    def chunk(kind: int) -> None:
        reader.struct({COLUMN: column})

    def group(kind: int) -> None:
        reader.struct({COLUMNS: lambda kind: reader.items(kind, chunk)})

    reader.struct({ROW_GROUPS: lambda kind: reader.items(kind, group)})
    return end


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at, self._depth = data, 0, 0

    def struct(self, wanted: Mapping[int, Take]) -> None:
        """Reads one; fields in `wanted` are read by what stands there, the others skipped."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError("structures too deep in each other")
        field = 0
        while header := self._byte():
            kind, delta = header & 15, header >> 4
            field = field + delta if delta else self._zigzag()
            wanted.get(field, self._skip)(kind)
        self._depth -= 1

    def items(self, kind: int, item: Take) -> None:
        """Reads a list, each of its items with `item`."""
        if kind not in (LIST, SET):
            raise ValueError("a value where a list is needed")
        header = self._byte()
        size = header >> 4 if header >> 4 < 15 else self._varint()
        for _ in range(size):
            item(header & 15)

    def whole(self, kind: int) -> int:
        if kind not in VARINTS:
            raise ValueError("a value where a whole number is needed")
        return self._zigzag()

    def _skip(self, kind: int) -> None:
        if kind in FIXED:
            self._move(FIXED[kind])
        elif kind in VARINTS:
            self._varint()
        elif kind == BINARY:
            self._move(self._varint())
        elif kind in (LIST, SET):
            self.items(kind, self._skip_item)
        elif kind == MAP:
            if size := self._varint():
                kinds = self._byte()
                for _ in range(size):
                    self._skip_item(kinds >> 4)
                    self._skip_item(kinds & 15)
        elif kind == STRUCT:
            self.struct({})
        else:
            raise ValueError(f"a value of the unknown type {kind}")

    def _skip_item(self, kind: int) -> None:
        if kind in (TRUE, FALSE):
            self._move(1)  # in a list it is a byte of its own
        else:
            self._skip(kind)

    def _move(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise ValueError("it ends too early")

    def _byte(self) -> int:
        self._move(1)
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number that is too long")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

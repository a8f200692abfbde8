"""Which rows have an entity: all but those with null, NaN or blank text in its column. Any other text is a name."""

import pyarrow as pa
import pyarrow.compute as pc

# The characters that Python calls spaces, in the syntax of RE2, which PyArrow and DuckDB use.
SPACES = r"\x{9}-\x{d}\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
BLANK = f"^[{SPACES}]*$"


def lack_entity(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A mask (N,) of the values that name no entity; the column may have any type."""
    if pa.types.is_floating(column.type):
        return pc.is_null(column, nan_is_null=True)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return pc.is_null(column)
    return pc.fill_null(pc.match_substring_regex(column, BLANK), True)


def write_entity(column: str) -> str:
    """SQL for the entity that a column (quoted) names, as text without spaces around it; null without one."""
    text = f"cast({column} as varchar)"
    is_nan = f"typeof({column}) in ('FLOAT', 'DOUBLE') and {text} in ('nan', '-nan')"
    return f"case when not (regexp_matches({text}, '{BLANK}') or {is_nan}) then trim({text}) end"

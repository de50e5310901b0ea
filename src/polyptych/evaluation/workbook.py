"""One sheet of an XLSX file, for servers that want one: text and whole numbers, no formulas.

An XLSX file is a ZIP archive of XML parts (ECMA-376); these are the few that a table needs.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from polyptych.errors import PolyptychError
from polyptych.files import write_aside

Cell = str | int

LONGEST = 32_767
"""Characters that a cell may have."""

_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_SHEET = "xl/worksheets/sheet1.xml"
_PARTS = {
    "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships'
    '+xml"/><Default Extension="xml" ContentType="application/xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{_TYPE}.sheet.main+xml"/>'
    f'<Override PartName="/{_SHEET}" ContentType="{_TYPE}.worksheet+xml"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="rId1" '
    f'Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
    "xl/workbook.xml": f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}"><sheets>'
    '<sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{_OFFICE}/worksheet" Target="worksheets/sheet1.xml"/>'
    "</Relationships>",
}
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")


def write_workbook(path: str | Path, rows: Sequence[Sequence[Cell]]) -> None:
    """Write a table; characters that XML forbids are left out.

    Raises:
        PolyptychError: For a text that is too long for a cell.
    """
    lines = "".join(_row(row, number) for number, row in enumerate(rows, start=1))
    sheet = f'<worksheet xmlns="{_MAIN}"><sheetData>{lines}</sheetData></worksheet>'
    with (
        write_aside(path, binary=True) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, part in {**_PARTS, _SHEET: sheet}.items():
            # The date is fixed, so that equal tables make equal files.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), _HEAD + part)


def _row(row: Sequence[Cell], number: int) -> str:
    cells = "".join(_cell(value, number, place) for place, value in enumerate(row))
    return f'<row r="{number}">{cells}</row>'


def _cell(value: Cell, row: int, place: int) -> str:
    address = f"{_letters(place)}{row}"
    if isinstance(value, int):
        return f'<c r="{address}"><v>{value}</v></c>'
    if len(value) > LONGEST:
        raise PolyptychError(f"cell {address}: {len(value)} characters, at most {LONGEST} fit")
    text = escape(_FORBIDDEN.sub("", value))
    return f'<c r="{address}" t="inlineStr"><is><t xml:space="preserve">{text}</t></is></c>'


def _letters(place: int) -> str:
    """A column's name: 0 is A, 26 is AA."""
    name = ""
    place += 1
    while place:
        place, rest = divmod(place - 1, 26)
        name = chr(65 + rest) + name
    return name


def read_workbook(path: str | Path) -> list[list[Cell]]:
    """Read a table that :func:`write_workbook` wrote.

    Raises:
        PolyptychError: For another file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = ElementTree.fromstring(archive.read(_SHEET))
    except (OSError, KeyError, zipfile.BadZipFile, ElementTree.ParseError) as error:
        raise PolyptychError(f"cannot read {path}: {error}") from error
    return [_read_row(row) for row in root.iter(f"{{{_MAIN}}}row")]


def _read_row(row: ElementTree.Element) -> list[Cell]:
    cells: list[Cell] = []
    for cell in row:
        number, text = cell.find(f"{{{_MAIN}}}v"), cell.find(f"{{{_MAIN}}}is/{{{_MAIN}}}t")
        if number is not None and number.text:
            cells.append(int(number.text))
        else:
            cells.append((text.text or "") if text is not None else "")
    return cells

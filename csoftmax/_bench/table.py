"""Tables of plain text."""


def layout(rows, align):
    """Lines of text with aligned columns; `align` has one of < and > for each column."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(align))]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)).rstrip()
        for row in rows
    ]

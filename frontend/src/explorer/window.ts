/** Which rows of a long grid are drawn: those in the window, and a few around them. */

export interface Rows {
  columns: number;
  rows: number;
  height: number; // px of a row, with the space below it
  first: number; // of the rows that are drawn
  last: number; // the one behind the last
}

/** The rows to draw.
 *
 *  @param count number of cells
 *  @param width px of the grid
 *  @param top px of the grid's upper edge below that of the window; negative if it was scrolled past
 *  @param seen px of the window's height
 *  @param cell least width and the height of a cell, and the space between two
 *  @param around rows that are drawn above and below the window */
export function rowsOf(
  count: number,
  width: number,
  top: number,
  seen: number,
  cell: { width: number; height: number; gap: number },
  around = 3,
): Rows {
  const columns = Math.max(1, Math.floor((width + cell.gap) / (cell.width + cell.gap)));
  const rows = Math.ceil(count / columns);
  const height = cell.height + cell.gap;
  const clamp = (row: number) => Math.max(0, Math.min(rows, row));
  const first = clamp(Math.floor(-top / height) - around);
  const last = clamp(Math.ceil((seen - top) / height) + around);
  return { columns, rows, height, first: Math.min(first, last), last };
}

/** The numbers of the pages that hold the cells from `first` to before `last`. */
export function pagesOf(first: number, last: number, size: number): number[] {
  if (last <= first) return [];
  const from = Math.floor(first / size);
  return Array.from({ length: Math.ceil(last / size) - from }, (_, i) => from + i);
}

/** Where an arrow key leads in a grid; null: the key leads nowhere. */
export function arrow(key: string, from: number, columns: number, count: number): number | null {
  const to =
    key === "ArrowRight"
      ? from + 1
      : key === "ArrowLeft"
        ? from - 1
        : key === "ArrowDown"
          ? from + columns
          : key === "ArrowUp"
            ? from - columns
            : key === "Home"
              ? 0
              : key === "End"
                ? count - 1
                : null;
  return to === null || to < 0 || to >= count ? null : to;
}

//! Plain tables: no frames, no colours, columns as wide as their content.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};

use super::format::clean;

/// Where a column's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// A table with a heading.
pub(super) struct Columns(Table);

impl Columns {
    pub(super) fn new(heading: &[(&str, Align)]) -> Self {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(heading.iter().map(|(name, _)| *name));
        for (column, (_, align)) in table.column_iter_mut().zip(heading) {
            column.set_padding((0, 2));
            if *align == Align::Right {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        Self(table)
    }

    /// Adds a row; cells lose what a terminal would obey.
    pub(super) fn row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.0.add_row(cells.into_iter().map(|cell| clean(cell.as_ref())));
    }
}

impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let mut lines = text.lines().map(str::trim_end).peekable();
        while let Some(line) = lines.next() {
            f.write_str(line)?;
            if lines.peek().is_some() {
                f.write_str("\n")?;
            }
        }
        Ok(())
    }
}

/// `NAME   value` lines of one thing; empty values are left out.
pub(super) fn details(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    let shown = rows.iter().filter(|(_, value)| !value.is_empty());
    shown.map(|(name, value)| format!("{name:<width$}{}", clean(value))).collect::<Vec<_>>().join("\n")
}

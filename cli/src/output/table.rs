//! Tables without lines, so that `awk` can read them too.

use super::foreign::{Colours, printable};

/// Rows under headings. Columns stand apart by two spaces; an empty cell is a `-`. Colours inside
/// cells take no room.
pub fn render(headings: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut lines: Vec<Vec<String>> = vec![headings.iter().map(|h| (*h).to_owned()).collect()];
    lines.extend(rows.into_iter().map(|row| {
        row.into_iter()
            .map(|cell| {
                if cell.is_empty() {
                    "-".to_owned()
                } else {
                    // Before widths are measured. A line end would tear the table.
                    printable(&cell, Colours::Own).replace('\n', "\\n")
                }
            })
            .collect()
    }));
    let mut widths = vec![0; headings.len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = visible(cell).max(*width);
        }
    }
    lines
        .iter()
        .map(|line| {
            let mut text = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                text.push_str(cell);
                text.push_str(&" ".repeat(width - visible(cell) + 2));
            }
            text.trim_end().to_owned()
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// Characters that a terminal shows of `text`: escape sequences up to their `m` take no room.
fn visible(text: &str) -> usize {
    let mut hidden = false;
    text.chars()
        .filter(|c| {
            let shown = !hidden && *c != '\u{1b}';
            hidden = *c == '\u{1b}' || (hidden && *c != 'm');
            shown
        })
        .count()
}

/// Names and values under each other, values aligned.
pub fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name:<width$}  {value}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let text = render(
            &["NAME", "STATUS"],
            vec![
                vec!["a".into(), "Ready".into()],
                vec!["longer".into(), String::new()],
            ],
        );
        assert_eq!(visible("\u{1b}[32mok\u{1b}[0m"), 2);
        assert_eq!(text, "NAME    STATUS\na       Ready\nlonger  -");
    }
}

//! Tables, on stdout and as Markdown in `target/bench`.

use std::fmt::Write;
use std::path::PathBuf;

use crate::Result;
use crate::statistics::Estimate;

/// What is printed so far.
pub struct Report {
    directory: PathBuf,
    text: String,
}

impl Report {
    /// An empty one; `target/bench` is made.
    pub fn new() -> Result<Self> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        let target = target.unwrap_or(concat!(env!("CARGO_MANIFEST_DIR"), "/target").into());
        let directory = target.join("bench");
        std::fs::create_dir_all(&directory)?;
        Ok(Self { directory, text: String::new() })
    }

    /// A paragraph or a heading.
    pub fn say(&mut self, text: &str) {
        println!("{text}\n");
        let _ = writeln!(self.text, "{text}\n");
    }

    /// A table; columns are as wide as they need to be.
    pub fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let width = |n: usize| {
            let cells = rows.iter().map(|row| row[n].chars().count());
            cells.chain([head[n].chars().count()]).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let line = |cells: &[String]| {
            let padded = cells.iter().zip(&widths).enumerate().map(|(n, (cell, width))| match n {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            format!("| {} |\n", padded.collect::<Vec<_>>().join(" | "))
        };
        let mut text = line(&head.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>());
        let dashes = widths.iter().enumerate().map(|(n, width)| match n {
            0 => "-".repeat(*width),
            _ => format!("{}:", "-".repeat(width - 1)),
        });
        text.push_str(&line(&dashes.collect::<Vec<_>>()));
        rows.iter().for_each(|row| text.push_str(&line(row)));
        println!("{text}");
        self.text.push_str(&text);
        self.text.push('\n');
    }

    /// Keeps raw figures beside the report, for whoever wants to look again.
    pub fn keep(&self, name: &str, text: &str) -> Result<()> {
        Ok(std::fs::write(self.directory.join(name), text)?)
    }

    /// Writes the Markdown file and says where it is.
    pub fn finish(self, name: &str) -> Result<()> {
        let path = self.directory.join(name);
        std::fs::write(&path, &self.text)?;
        println!("written to {}", path.display());
        Ok(())
    }
}

/// `1.23 [1.20, 1.27]`.
pub fn interval(estimate: Estimate) -> String {
    match estimate.median.is_nan() {
        true => "-".into(),
        false => format!("{:.2} [{:.2}, {:.2}]", estimate.median, estimate.low, estimate.high),
    }
}

/// `14.2 (13.9-15.0)`.
pub fn spread(estimate: Estimate) -> String {
    match estimate.median.is_nan() {
        true => "-".into(),
        false => format!("{:.1} ({:.1}-{:.1})", estimate.median, estimate.low, estimate.high),
    }
}

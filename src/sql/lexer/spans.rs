//! An append-only list of [`Span`]s that allocates only past [`INLINE`].

use super::{INLINE, Span};

/// Spans in rising order.
#[derive(Debug, Clone, Default)]
pub(super) struct Spans {
    inline: [Span; INLINE],
    /// How many of `inline` are in use; all of them once `spilled` is.
    inline_count: u8,
    spilled: Vec<Span>,
}

impl Spans {
    #[inline]
    pub(super) fn len(&self) -> usize {
        usize::from(self.inline_count) + self.spilled.len()
    }

    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<Span> {
        match index < usize::from(self.inline_count) {
            true => self.inline.get(index).copied(),
            false => self.spilled.get(index - usize::from(self.inline_count)).copied(),
        }
    }

    #[inline]
    pub(super) fn push(&mut self, span: Span) {
        match self.inline.get_mut(usize::from(self.inline_count)) {
            Some(free) => {
                *free = span;
                self.inline_count += 1;
            }
            None => self.spilled.push(span),
        }
    }

    /// Drops the spans that start at `offset` or later.
    pub(super) fn truncate_from(&mut self, offset: u32) {
        while let Some(last) = self.spilled.last() {
            if last.start < offset {
                return;
            }
            self.spilled.pop();
        }
        while let Some(last) = usize::from(self.inline_count).checked_sub(1) {
            if self.inline[last].start < offset {
                return;
            }
            self.inline_count -= 1;
        }
    }

    /// Index of the first span that starts at `offset` or later.
    pub(super) fn after(&self, offset: u32) -> usize {
        let inline = &self.inline[..usize::from(self.inline_count)];
        match inline.partition_point(|span| span.start < offset) {
            index if index < inline.len() => index,
            index => index + self.spilled.partition_point(|span| span.start < offset),
        }
    }

    /// Index of the span that starts at `offset`.
    pub(super) fn find(&self, offset: u32) -> Option<usize> {
        let index = self.after(offset);
        (self.get(index)?.start == offset).then_some(index)
    }
}

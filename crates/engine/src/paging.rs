//! Pages of lists.

use crate::fields::Fields;
use crate::refusal::Refusal;

/// Number of rows of a page if the request has no page size.
const PAGE_SIZE_DEFAULT: i64 = 100;
const PAGE_SIZE_MAX: i64 = 1_000;

/// The page that a caller asks for.
#[derive(Debug)]
pub struct PageRequest<C> {
    /// Maximum number of rows. 0: the default.
    pub size: i32,
    /// The cursor of the previous page, or `None` for the first page. `Err` if the caller sent an invalid cursor; it is returned after
    /// the check of the fields.
    pub after: Result<Option<C>, Refusal>,
}

impl<C> PageRequest<C> {
    /// Asks for the first page.
    pub fn first(size: i32) -> Self {
        Self { size, after: Ok(None) }
    }

    /// Checks the size and returns it.
    pub(crate) fn check_size(&self, fields: &mut Fields) -> i64 {
        fields.page_size(self.size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
    }
}

/// A page of rows.
#[derive(Debug)]
pub struct Page<T, C> {
    pub rows: Vec<T>,
    /// The cursor of the next page, `None` on the last page.
    pub next: Option<C>,
}

impl<T, C> Page<T, C> {
    /// Creates a page of at most `size` rows. If there are more rows, another page follows.
    pub(crate) fn of(mut rows: Vec<T>, size: i64, cursor: impl FnOnce(&T) -> C) -> Self {
        let size = size.max(0) as usize;
        let more = rows.len() > size;
        rows.truncate(size);
        let next = rows.last().filter(|_| more).map(cursor);
        Self { rows, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_cursor_if_and_only_if_rows_follow() {
        let page = |count: i64| {
            let page = Page::of((0..count).collect(), 2, |last| *last);
            (page.rows.len(), page.next)
        };
        assert_eq!([page(0), page(1), page(2), page(3)], [(0, None), (1, None), (2, None), (2, Some(1))]);
    }
}

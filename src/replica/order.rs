//! In which order changed rows are written, so that none of them is in the way of another: what no two rows may share is
//! written where it is needed after it was given up elsewhere.
//!
//! Where rows pass such values round in a circle, one of them has to go first and come again last. So have all where it is
//! not known what they may not share, since it is an expression.

use std::collections::HashMap;

use super::table::{Table, Unique};
use crate::sqlite::record::Stored;

/// A value of each column, where there is one.
pub(super) type Values<'a> = Vec<Option<Stored<'a>>>;

/// The order in which changed rows are written, by their number.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Order {
    /// Those that are changed where they are, in this order.
    pub(super) in_place: Vec<usize>,
    /// Those that have to go before the others are changed, and come again afterwards.
    pub(super) anew: Vec<usize>,
}

/// What a row has of something that no two rows may share.
#[derive(PartialEq, Eq)]
enum Held {
    /// Nothing: a NULL is nobody's.
    Nothing,
    /// This, or what may count as equal to it.
    This(Vec<u8>),
    /// It is not known.
    Unknown,
}

fn held(unique: &Unique, values: &[Option<Stored<'_>>]) -> Held {
    let mut bytes = Vec::new();
    for at in &unique.columns {
        let text;
        let (kind, value) = match values.get(*at).copied().flatten() {
            None => return Held::Unknown,
            Some(Stored::Null) => return Held::Nothing,
            // 1 is 1.0, and 0.0 is -0.0.
            Some(Stored::Integer(number)) => (1, &(number as f64 + 0.0).to_bits().to_be_bytes()[..]),
            Some(Stored::Float(number)) => (1, &(number + 0.0).to_bits().to_be_bytes()[..]),
            // Collations take no account of case, or of blanks at the end.
            Some(Stored::Text(value)) => {
                text = value.to_ascii_lowercase();
                let end = text.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
                (2, &text[..end])
            }
            Some(Stored::Blob(value)) => (3, value),
        };
        bytes.push(kind);
        bytes.extend_from_slice(&(value.len() as u64).to_be_bytes());
        bytes.extend_from_slice(value);
    }
    Held::This(bytes)
}

/// Whether two rows have the same in a column, to the last bit.
pub(super) fn same(one: Option<Stored<'_>>, other: Option<Stored<'_>>) -> bool {
    match (one, other) {
        (Some(Stored::Float(one)), Some(Stored::Float(other))) => one.to_bits() == other.to_bits(),
        _ => one == other,
    }
}

/// The order in which so many rows of a table are written, of which `values` tells what they were and what they are now.
/// Those that `comes_anew` says go first and come again in any case.
pub(super) fn order<'a>(
    table: &Table,
    count: usize,
    comes_anew: impl Fn(usize) -> bool,
    values: impl Fn(usize) -> Option<[Values<'a>; 2]>,
) -> Option<Order> {
    let mut anew: Vec<bool> = (0..count).map(comes_anew).collect();
    // For each row those that have to be written before it.
    let mut waits: HashMap<usize, Vec<usize>> = HashMap::new();
    for unique in &table.unique {
        let (mut given_up, mut wanted, mut unknown) = (HashMap::<_, Vec<usize>>::new(), Vec::new(), Vec::new());
        let mut touched = 0;
        for row in (0..count).filter(|row| !anew[*row]) {
            let [old, new] = values(row)?;
            if unique.columns.iter().all(|at| same(old[*at], new[*at])) {
                continue;
            }
            touched += 1;
            match (held(unique, &old), held(unique, &new)) {
                _ if !unique.is_plain => unknown.push(row),
                (Held::Unknown, _) | (_, Held::Unknown) => unknown.push(row),
                (before, after) => {
                    if let Held::This(before) = before {
                        given_up.entry(before).or_default().push(row);
                    }
                    if let Held::This(after) = after {
                        wanted.push((row, after));
                    }
                }
            }
        }
        if touched > 1 {
            unknown.into_iter().for_each(|row| anew[row] = true);
        }
        for (row, value) in wanted {
            let holders = given_up.get(&value).into_iter().flatten().filter(|holder| **holder != row);
            for holder in holders {
                waits.entry(row).or_default().push(*holder);
            }
        }
    }
    Some(sorted(anew, &waits))
}

/// Rows behind those that they wait for, and one of each circle out of the way.
fn sorted(mut anew: Vec<bool>, waits: &HashMap<usize, Vec<usize>>) -> Order {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        No,
        Begun,
        Done,
    }
    let (mut seen, mut in_place) = (vec![Seen::No; anew.len()], Vec::new());
    for row in 0..anew.len() {
        // A row, and how many of those that it waits for were looked at.
        let mut way = vec![(row, 0)];
        while let Some((row, looked)) = way.pop() {
            if looked == 0 {
                if seen[row] != Seen::No || anew[row] {
                    continue;
                }
                seen[row] = Seen::Begun;
            }
            match waits.get(&row).and_then(|rows| rows.get(looked)) {
                Some(before) => {
                    way.push((row, looked + 1));
                    match seen[*before] {
                        Seen::No => way.push((*before, 0)),
                        // It waits for this one itself.
                        Seen::Begun => anew[*before] = true,
                        Seen::Done => {}
                    }
                }
                None => {
                    seen[row] = Seen::Done;
                    in_place.push(row);
                }
            }
        }
    }
    in_place.retain(|row| !anew[*row]);
    Order { in_place, anew: (0..anew.len()).filter(|row| anew[*row]).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order for rows of `t(a, b)` that were and are these.
    fn of(uniques: &[&str], rows: &[[[Stored<'static>; 2]; 2]]) -> Order {
        let mut table = Table::parse("CREATE TABLE t(a, b)").expect("it is a table");
        uniques.iter().for_each(|on| table.index(&format!("CREATE UNIQUE INDEX i ON t{on}")));
        let values = |row: usize| Some(rows[row].map(|values| values.into_iter().map(Some).collect()));
        order(&table, rows.len(), |_| false, values).expect("the rows can be read")
    }

    fn numbers(rows: &[(i64, i64)]) -> Vec<[[Stored<'static>; 2]; 2]> {
        rows.iter().map(|row| [row.0, row.1].map(|a| [Stored::Integer(a), Stored::Integer(0)])).collect()
    }

    #[test]
    fn a_row_comes_after_the_one_that_has_what_it_gets() {
        let shifted = numbers(&[(1, 2), (2, 3), (3, 4), (9, 8)]);
        assert_eq!(of(&["(a)"], &shifted), Order { in_place: vec![2, 1, 0, 3], anew: vec![] });
        assert_eq!(of(&["(b)"], &shifted), Order { in_place: vec![0, 1, 2, 3], anew: vec![] });
        assert_eq!(of(&[], &numbers(&[(1, 2), (2, 1)])), Order { in_place: vec![0, 1], anew: vec![] });
    }

    #[test]
    fn of_a_circle_one_goes_first_and_comes_last() {
        let swapped = numbers(&[(1, 2), (2, 1), (3, 1), (5, 5)]);
        let order = of(&["(a)"], &swapped);
        assert_eq!((order.in_place, order.anew), (vec![1, 2, 3], vec![0]));
        let round: Vec<(i64, i64)> = (0..10_000).map(|at| (at, (at + 1) % 10_000)).collect();
        let order = of(&["(a)", "(a, b)"], &numbers(&round));
        assert_eq!((order.in_place.len(), order.anew), (9_999, vec![0]));
    }

    #[test]
    fn what_may_count_as_equal_is_in_the_way() {
        let text = |text: &'static str| [Stored::Text(text.as_bytes()), Stored::Null];
        let order = of(&["(a COLLATE NOCASE)"], &[[text("x"), text("Y ")], [text("y"), text("z")]]);
        assert_eq!(order, Order { in_place: vec![1, 0], anew: vec![] });
        let number = |a: Stored<'static>| [a, Stored::Null];
        let (one, other) = (number(Stored::Integer(1)), number(Stored::Float(1.0)));
        let order = of(&["(a)"], &[[number(Stored::Integer(7)), one], [other, number(Stored::Null)]]);
        assert_eq!(order, Order { in_place: vec![1, 0], anew: vec![] });
        // A NULL is in nobody's way.
        let order = of(&["(a)"], &[[number(Stored::Integer(7)), number(Stored::Null)], [number(Stored::Null), one]]);
        assert_eq!(order, Order { in_place: vec![0, 1], anew: vec![] });
    }

    #[test]
    fn what_an_expression_may_forbid_comes_anew() {
        let rows = numbers(&[(1, 2), (3, 4)]);
        assert_eq!(of(&["(a + 1)"], &rows), Order { in_place: vec![], anew: vec![0, 1] });
        assert_eq!(of(&["(b) WHERE a > 1"], &rows), Order { in_place: vec![], anew: vec![0, 1] });
        assert_eq!(of(&["(a + 1)"], &rows[..1]), Order { in_place: vec![0], anew: vec![] });
        assert_eq!(of(&["(b + 1)"], &rows), Order { in_place: vec![0, 1], anew: vec![] });
    }
}

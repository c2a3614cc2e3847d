//! All that was changed between two states of a database, as statements for a third: in an order in which none is in the
//! way of another.
//!
//! First what is gone or altered of the schema, and tables that are new; then rows, table by table: those that are gone,
//! those that changed, those that are new; then indexes, views and triggers that are new. Triggers of the third state have
//! fired already where the rows were changed, so they are out of the way meanwhile. While tables are altered views are too:
//! not every state in between would suit them.

use std::collections::{BTreeMap, BTreeSet};

use super::alter::Alteration;
use super::catalog::{Catalog, Made, counters};
use super::change::{Otherwise, Statement, Writer};
use super::error::ReplicaError;
use super::order::{Order, Values};
use super::report::{About, Doing};
use super::rewrite::Rewrite;
use super::rows::{Differing, Differs, Row, RowDiff, Side, State, Updated};
use super::table::{Key, Table};
use super::words::{create, folded, is_renamed, quoted};
use crate::sqlite::btree::{self, PAGE_LEN};
use crate::sync::turso::Value;

/// Takes statements as they are found.
pub(super) type Take<'a> = dyn FnMut(Statement) -> Result<(), ReplicaError> + 'a;

/// Which of the changes are reported: they are counted in the order in which they are found, from what is done to the schema
/// first, over each row, or each table that is rewritten, to what is done to the schema last.
pub(super) struct Portion {
    /// Those before are not reported.
    skip: u64,
    /// No more are reported when their values have so many bytes.
    bytes: usize,
    seen: u64,
    reported_bytes: usize,
    /// How many were reported or skipped when it was enough.
    end: Option<u64>,
}

impl Portion {
    /// Those after the first `skip`, one at least, until their values have so many bytes.
    pub(super) fn after(skip: u64, bytes: usize) -> Portion {
        Portion { skip, bytes, seen: 0, reported_bytes: 0, end: None }
    }

    /// Whether the next change is reported.
    fn next(&mut self) -> bool {
        if self.end.is_none() && self.seen >= self.skip && self.reported_bytes >= self.bytes {
            self.end = Some(self.seen);
        }
        self.seen += 1;
        self.end.is_none() && self.seen > self.skip
    }

    fn count(&mut self, statement: &Statement) {
        self.reported_bytes += statement.bytes();
    }

    /// How many were reported or skipped; `None` when these were all.
    pub(super) fn end(&self) -> Option<u64> {
        self.end
    }
}

/// Numbers on the first page that are the application's, by the pragma that sets them, and where they are.
const NUMBERS: [(&str, usize); 2] = [("user_version", 60), ("application_id", 68)];

/// A table of the new state, and what it was in the old one.
struct Pair<'a> {
    old: Option<(u32, &'a Table)>,
    new: (u32, &'a Table),
    alteration: Alteration,
}

impl Pair<'_> {
    fn name(&self) -> &str {
        &self.new.1.name
    }

    /// Whether a column is not where one was that was there before, in a record.
    fn has_moved(&self) -> bool {
        let Some((_, old)) = self.old else { return false };
        let was = |at: usize| self.alteration.was.get(at).copied().flatten();
        let (before, now) = (old.in_record(), self.new.1.in_record());
        let stay = before.len() <= now.len() && before.iter().zip(&now).all(|(before, now)| was(*now) == Some(*before));
        !stay || now[before.len()..].iter().any(|now| was(*now).is_some())
    }

    /// Whether that is its name, or was.
    fn is_called(&self, name: &str) -> bool {
        let names = [Some(self.new.1), self.old.map(|(_, table)| table)];
        names.into_iter().flatten().any(|table| table.name.eq_ignore_ascii_case(name))
    }
}

/// Views or triggers in three states: of two it is told what was changed, and the third is to be changed alike.
struct Kept<'a> {
    kind: &'static str,
    states: [&'a BTreeMap<String, Made>; 3],
    /// What was dropped of the third.
    out: BTreeSet<&'a String>,
}

impl<'a> Kept<'a> {
    fn is_changed(&self, name: &str) -> bool {
        let [before, after, _] = self.states;
        before.get(name) != after.get(name)
    }

    /// Drops what was changed, and of the others those that are in the way.
    fn drop(&mut self, is_in_the_way: impl Fn(&Made) -> bool, take: &mut Take<'_>) -> Result<(), ReplicaError> {
        let [before, _, there] = self.states;
        let changed = before.keys().filter(|name| self.is_changed(name));
        let in_the_way = there.iter().filter(|(_, made)| is_in_the_way(made)).map(|(name, _)| name);
        let names: BTreeSet<&'a String> = changed.chain(in_the_way).collect();
        for name in names {
            if self.out.insert(name) {
                take(Statement::schema(format!("DROP {} IF EXISTS {}", self.kind, quoted(name)), name))?;
            }
        }
        Ok(())
    }

    /// Makes what was changed, and what was dropped without having been.
    fn make(self, take: &mut Take<'_>) -> Result<(), ReplicaError> {
        let [_, after, there] = self.states;
        let names: BTreeSet<&String> =
            after.keys().filter(|name| self.is_changed(name)).chain(self.out.iter().copied()).collect();
        for name in names {
            let made = if self.is_changed(name) { after.get(name) } else { there.get(name) };
            if let Some(made) = made {
                take(Statement::schema(create(&made.sql), name))?;
            }
        }
        Ok(())
    }
}

/// What was changed from `old` to `new`, which differ in `differing`, for `there`. `shared` is the state that the third one
/// descends from, if that is not `old`: rows without a key that were not in it have other rowids in the third. A `portion` of it
/// is whole as far as the schema is concerned: triggers that it takes out of the way are there again after it.
///
/// # Errors
/// When a state cannot be read, or as `take` says.
pub(super) fn statements(
    (old, new): (State<'_>, State<'_>),
    differing: &Differing,
    shared: Option<State<'_>>,
    there: &Catalog,
    portion: &mut Portion,
    take: &mut Take<'_>,
) -> Result<(), ReplicaError> {
    let (before, after) = (old.catalog, new.catalog);
    let (pairs, gone) = pairs(before, after);
    let mut views = Kept { kind: "VIEW", states: [&before.views, &after.views, &there.views], out: BTreeSet::new() };
    let mut triggers =
        Kept { kind: "TRIGGER", states: [&before.triggers, &after.triggers, &there.triggers], out: BTreeSet::new() };
    // An index goes with its table, and is rewritten when that is altered.
    let stays = |name: &str| {
        let (Some(was), Some(is)) = (before.indexes.get(name), after.indexes.get(name)) else { return false };
        let pair = pairs.iter().find(|pair| pair.name().eq_ignore_ascii_case(&is.of));
        pair.is_some_and(|pair| pair.old.is_some() && is_renamed(&was.sql, &is.sql, &pair.alteration.renamed))
    };
    if portion.next() {
        let take: &mut Take<'_> = &mut |statement| {
            portion.count(&statement);
            take(statement)
        };
        let alters = !gone.is_empty() || pairs.iter().any(|pair| !pair.alteration.statements.is_empty());
        views.drop(|_| alters, take)?;
        triggers.drop(|_| alters, take)?;
        for name in before.indexes.keys().filter(|name| !stays(name)) {
            take(Statement::schema(format!("DROP INDEX IF EXISTS {}", quoted(name)), name))?;
        }
        for table in gone {
            take(Statement::schema(format!("DROP TABLE IF EXISTS {}", quoted(&table.name)), &table.name))?;
        }
        for pair in &pairs {
            for sql in &pair.alteration.statements {
                take(Statement::schema(sql.clone(), pair.name()))?;
            }
        }
        for pair in pairs.iter().filter(|pair| pair.old.is_none()) {
            let create = Statement::schema(create(&pair.new.1.sql), pair.name());
            // Without it all rows would be given up.
            let is_free = !there.has(&folded(pair.name())) || before.tables.contains_key(&folded(pair.name()));
            take(if is_free { Statement { otherwise: Otherwise::Fail, ..create } } else { create })?;
        }
    }
    for pair in &pairs {
        let changes = Changes::of((old, new), pair, differing, shared)?;
        changes.check_all()?;
        // Counted alike, whatever the table is there.
        let is_one = changes.is_one();
        if is_one && !portion.next() {
            continue;
        }
        match changes.rewrite([there, after], before) {
            Some(rewrite) => {
                views.drop(|_| true, take)?;
                triggers.drop(|_| true, take)?;
                let take: &mut Take<'_> = &mut |statement| {
                    portion.count(&statement);
                    take(statement)
                };
                changes.rewritten(&rewrite, take)?;
                for (name, made) in there.indexes.iter().filter(|(_, made)| pair.is_called(&made.of)) {
                    take(Statement::schema(create(&made.sql), name))?;
                }
            }
            None => changes.told(&mut |statement| {
                if !is_one && !portion.next() {
                    return Ok(());
                }
                triggers.drop(|made| pair.is_called(&made.of), take)?;
                portion.count(&statement);
                take(statement)
            })?,
        }
    }
    if !portion.next() {
        views.make(take)?;
        return triggers.make(take);
    }
    count(&pairs, (old, new), take)?;
    for (name, made) in after.indexes.iter().filter(|(name, _)| !stays(name)) {
        take(Statement::schema(create(&made.sql), name))?;
    }
    views.make(take)?;
    triggers.make(take)?;
    for (name, at) in NUMBERS {
        let (was, is) = (number(old, at)?, number(new, at)?);
        if was != is {
            take(Statement::schema(format!("PRAGMA {name} = {is}"), name))?;
        }
    }
    Ok(())
}

/// Brings counters of `AUTOINCREMENT` to where they are, as far as no row does: a rowid that was given is not given again
/// though its row is gone.
fn count(pairs: &[Pair<'_>], (old, new): (State<'_>, State<'_>), take: &mut Take<'_>) -> Result<(), ReplicaError> {
    const MAKE: &str = "INSERT INTO sqlite_sequence(name, seq) SELECT name, 0 FROM sqlite_schema WHERE type = 'table' AND \
                        name = ? COLLATE NOCASE AND NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = ? COLLATE NOCASE)";
    const RAISE: &str = "UPDATE sqlite_sequence SET seq = ? WHERE name = ? COLLATE NOCASE AND seq < ?";
    if !pairs.iter().any(|pair| pair.new.1.counts) {
        return Ok(());
    }
    let (before, after) = (counters(old.pages)?, counters(new.pages)?);
    for pair in pairs.iter().filter(|pair| pair.new.1.counts) {
        let was = pair.old.and_then(|(_, table)| before.get(&folded(&table.name)));
        let Some(is) = after.get(&folded(pair.name())) else { continue };
        if was.is_some_and(|was| was >= is) || btree::last_rowid(new.pages, pair.new.0)? >= Some(*is) {
            continue;
        }
        let (name, number) = (Value::Text(pair.name().to_owned()), Value::Integer(*is));
        for (sql, args) in
            [(MAKE, vec![name.clone(), name.clone()]), (RAISE, vec![number.clone(), name, number.clone()])]
        {
            let key = vec![("AUTOINCREMENT".to_owned(), number.clone())];
            let about = About { table: pair.name().to_owned(), key, doing: Doing::Update };
            take(Statement { sql: sql.to_owned(), args, about, otherwise: Otherwise::Nothing })?;
        }
    }
    Ok(())
}

/// A number on the first page.
fn number(state: State<'_>, at: usize) -> Result<i32, ReplicaError> {
    let mut page = [0; PAGE_LEN];
    if state.pages.count() > 0 {
        state.pages.read(1, &mut page)?;
    }
    Ok(page[at..].first_chunk().map_or(0, |bytes| i32::from_be_bytes(*bytes)))
}

/// The tables of the new state with what they were, and those of the old one that are gone.
fn pairs<'a>(before: &'a Catalog, after: &'a Catalog) -> (Vec<Pair<'a>>, Vec<&'a Table>) {
    let mut gone: BTreeMap<&String, &(u32, Table)> =
        before.tables.iter().filter(|(name, _)| !after.tables.contains_key(*name)).collect();
    let mut pairs = Vec::new();
    for (name, (root, table)) in &after.tables {
        let was = match before.tables.get_key_value(name) {
            Some((name, was)) => {
                let alteration = Alteration::between(&was.1, table);
                if alteration.is_none() {
                    gone.insert(name, was);
                }
                alteration.map(|alteration| (was, alteration))
            }
            // A table by another name, unless its pages were merely used again.
            None => gone.values().find_map(|was| {
                let same = was.0 == *root && table.columns.starts_with(&was.1.columns);
                let alteration = same.then(|| Alteration::between(&was.1, table)).flatten()?;
                Some((*was, alteration))
            }),
        };
        let new = (*root, table);
        pairs.push(match was {
            Some((was, alteration)) => {
                gone.remove(&folded(&was.1.name));
                Pair { old: Some((was.0, &was.1)), new, alteration }
            }
            None => Pair { old: None, new, alteration: Alteration::of_new(table) },
        });
    }
    (pairs, gone.into_values().map(|(_, table)| table).collect())
}

/// What was changed of the rows of one table.
struct Changes<'a> {
    pair: &'a Pair<'a>,
    writer: Writer<'a>,
    diff: RowDiff<'a>,
    shared: Option<State<'a>>,
}

impl<'a> Changes<'a> {
    fn of(
        (old, new): (State<'a>, State<'a>),
        pair: &'a Pair<'a>,
        differing: &Differing,
        shared: Option<State<'a>>,
    ) -> Result<Changes<'a>, ReplicaError> {
        let before = pair.old.map(|(root, table)| Side { pages: old.pages, root, table });
        let after = Side { pages: new.pages, root: pair.new.0, table: pair.new.1 };
        let writer = Writer::new(before, pair.new.1, &pair.alteration.was);
        let differs = |change: &Updated| writer.differs(change);
        let moved: Option<&Differs<'_>> = if pair.has_moved() { Some(&differs) } else { None };
        let diff = RowDiff::of(differing, before, Some(after), moved)?;
        Ok(Changes { pair, writer, diff, shared })
    }

    fn damaged(&self) -> ReplicaError {
        ReplicaError::Record { table: self.pair.name().to_owned() }
    }

    /// Refuses a row with a text that is not UTF-8, whose values these are.
    fn check(&self, row: &Row, values: Option<Values<'_>>) -> Result<(), ReplicaError> {
        let values = values.ok_or_else(|| self.damaged())?;
        let Some(column) = self.writer.not_utf8(&values) else { return Ok(()) };
        let about = self.writer.about(Doing::Update, row, &values);
        let (table, column, key) = (about.table.clone(), column.name.clone(), about.shown_key());
        Err(ReplicaError::NotUtf8 { table, column, key })
    }

    /// Refuses rows that the engine could not write as they are, before any is written.
    fn check_all(&self) -> Result<(), ReplicaError> {
        let writer = &self.writer;
        self.diff.deleted.iter().try_for_each(|row| self.check(row, writer.old_values(row)))?;
        for Updated { old, new } in &self.diff.updated {
            self.check(old, writer.old_values(old))?;
            self.check(new, writer.new_values(new))?;
        }
        Ok(())
    }

    /// Whether a row has the same rowid where the statements will run. What was pushed since is there under another one,
    /// unless it was there before.
    fn same_rowid(&self, row: &Row) -> Result<bool, ReplicaError> {
        match (self.shared, self.pair.old) {
            (Some(shared), Some((_, table))) if table.key == Key::Rowid => {
                let was = match shared.catalog.tables.get(&folded(&table.name)) {
                    Some((root, _)) => btree::row(shared.pages, *root, row.rowid)?,
                    None => None,
                };
                Ok(was.as_ref() == Some(&row.record))
            }
            _ => Ok(true),
        }
    }

    /// Those that change in place, in order, and those that go first and come again.
    fn updated(&self) -> Result<[Vec<&Updated>; 2], ReplicaError> {
        let Order { in_place, anew } = self.writer.order(&self.diff.updated).ok_or_else(|| self.damaged())?;
        Ok([in_place, anew].map(|of| of.iter().filter_map(|at| self.diff.updated.get(*at)).collect()))
    }

    fn told(&self, take: &mut Take<'_>) -> Result<(), ReplicaError> {
        let take = &mut |statement| match self.pair.new.1.is_mistaken() {
            true => Err(ReplicaError::KeyNotFirst { table: self.pair.name().to_owned() }),
            false => take(statement),
        };
        let damaged = || self.damaged();
        let [in_place, anew] = self.updated()?;
        for row in self.diff.deleted.iter().chain(anew.iter().map(|change| &change.old)) {
            take(self.writer.delete(row, self.same_rowid(row)?).ok_or_else(damaged)?)?;
        }
        for change in in_place {
            if let Some(update) = self.writer.update(change, self.same_rowid(&change.old)?).ok_or_else(damaged)? {
                take(update)?;
            }
        }
        self.added(&anew, take)
    }

    /// Rows that come, some of them again.
    fn added(&self, anew: &[&Updated], take: &mut Take<'_>) -> Result<(), ReplicaError> {
        for change in anew {
            take(self.writer.insert(&change.new).ok_or_else(|| self.damaged())?)?;
            if let Some(restore) = self.writer.restore(change) {
                take(restore)?;
            }
        }
        self.diff.inserted(|row| {
            self.check(&row, self.writer.new_values(&row))?;
            take(self.writer.insert(&row).ok_or_else(|| self.damaged())?)
        })
    }

    /// Whether its changes may have to be made by a rewrite of the table, which are not reported one by one.
    fn is_one(&self) -> bool {
        let has_rowids = self.pair.old.is_none_or(|(_, old)| old.has_rowids);
        !(has_rowids || self.diff.deleted.is_empty() && self.diff.updated.is_empty())
    }

    /// How the table is rewritten where its rows cannot be changed otherwise, and have to be.
    fn rewrite(&self, [there, after]: [&'a Catalog; 2], before: &Catalog) -> Option<Rewrite<'_>> {
        let (_, old) = self.pair.old.filter(|_| self.is_one())?;
        let (_, table) = there.tables.get(&folded(&old.name))?;
        let is_taken = |name: &str| there.has(name) || after.has(name);
        let altered = !self.pair.alteration.statements.is_empty();
        // What it is there once both have altered it is not known.
        let is_known = !altered || before.tables.get(&folded(&old.name)).is_some_and(|(_, was)| was.sql == table.sql);
        let rewrite = Rewrite::of(&self.writer, if altered { self.pair.new.1 } else { table }, is_taken);
        rewrite.filter(|_| is_known && !self.pair.new.1.is_mistaken())
    }

    fn rewritten(&self, rewrite: &Rewrite<'_>, take: &mut Take<'_>) -> Result<(), ReplicaError> {
        let damaged = || self.damaged();
        let [in_place, anew] = self.updated()?;
        rewrite.begin().ok_or_else(damaged)?.into_iter().try_for_each(&mut *take)?;
        for row in self.diff.deleted.iter().chain(anew.iter().map(|change| &change.old)) {
            take(rewrite.delete(row).ok_or_else(damaged)?)?;
        }
        for change in in_place {
            if let Some(update) = rewrite.update(change).ok_or_else(damaged)? {
                take(update)?;
            }
        }
        rewrite.end().into_iter().try_for_each(&mut *take)?;
        self.added(&anew, take)
    }
}

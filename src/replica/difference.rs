//! All that was changed between two states of a database, as statements for a third: in an order in which none is in the
//! way of another.
//!
//! First what is gone or altered of the schema, and tables that are new; then rows, table by table: those that are gone,
//! those that changed, those that are new; then indexes, views and triggers that are new. Triggers of the third state have
//! fired already where the rows were changed, so they are out of the way meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use super::catalog::{Catalog, Made};
use super::change::{Rewritten, Statement, Writer};
use super::error::ReplicaError;
use super::rows::{Differing, Row, RowDiff, Side, State};
use super::table::{Alteration, Key, Table, quoted};
use crate::sqlite::btree;

/// Takes statements as they are found.
pub(super) type Take<'a> = dyn FnMut(Statement) -> Result<(), ReplicaError> + 'a;

/// The triggers of the state where the statements will run, by name.
pub(super) type Triggers = BTreeMap<String, Made>;

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
}

/// What was changed from `old` to `new`, which differ in `differing`. `shared` is the state that the third one descends
/// from, if that is not `old`: rows without a key that were not in it have other rowids in the third.
///
/// # Errors
/// When a state cannot be read, or as `take` says.
pub(super) fn statements(
    (old, new): (State<'_>, State<'_>),
    differing: &Differing,
    shared: Option<State<'_>>,
    triggers: &Triggers,
    take: &mut Take<'_>,
) -> Result<(), ReplicaError> {
    let (before, after) = (old.catalog, new.catalog);
    let (pairs, gone) = pairs(before, after);
    let pair = |table: &str| pairs.iter().find(|pair| pair.name().eq_ignore_ascii_case(table));
    // What is made on a table goes with it, and is rewritten when it is altered.
    let stays = |before: Option<&Made>, after: Option<&Made>| {
        let (Some(before), Some(after)) = (before, after) else { return false };
        let table = pair(&after.of).filter(|pair| pair.old.is_some());
        let rewritten = |pair: &Pair<'_>| before.root == after.root && !pair.alteration.statements.is_empty();
        table.is_some_and(|pair| before == after || before.root > 0 && rewritten(pair))
    };
    for (name, _) in before.views.iter().filter(|(name, made)| after.views.get(*name) != Some(made)) {
        take(Statement::schema(format!("DROP VIEW IF EXISTS {}", quoted(name)), name))?;
    }
    for (name, made) in &before.indexes {
        if !stays(Some(made), after.indexes.get(name)) {
            take(Statement::schema(format!("DROP INDEX IF EXISTS {}", quoted(name)), name))?;
        }
    }
    for name in gone {
        take(Statement::schema(format!("DROP TABLE IF EXISTS {}", quoted(name)), name))?;
    }
    for pair in &pairs {
        for sql in &pair.alteration.statements {
            take(Statement::schema(sql.clone(), pair.name()))?;
        }
    }
    for pair in pairs.iter().filter(|pair| pair.old.is_none()) {
        take(Statement::schema(pair.new.1.sql.clone(), pair.name()))?;
    }
    let mut out: BTreeMap<&String, &Made> = BTreeMap::new();
    for pair in &pairs {
        let old_name = pair.old.map(|(_, table)| &table.name);
        let fires = |made: &Made| {
            [Some(&pair.new.1.name), old_name].into_iter().flatten().any(|name| made.of.eq_ignore_ascii_case(name))
        };
        rows((old, new), pair, differing, shared, &mut |statement| {
            for (name, made) in triggers.iter().filter(|(_, made)| fires(made)) {
                if out.insert(name, made).is_none() {
                    take(Statement::schema(format!("DROP TRIGGER IF EXISTS {}", quoted(name)), name))?;
                }
            }
            take(statement)
        })?;
    }
    for (name, made) in &after.indexes {
        if !stays(before.indexes.get(name), Some(made)) {
            take(Statement::schema(made.sql.clone(), name))?;
        }
    }
    for (name, made) in after.views.iter().filter(|(name, made)| before.views.get(*name) != Some(made)) {
        take(Statement::schema(made.sql.clone(), name))?;
    }
    // Ours knows how its table is called now.
    for (name, made) in out.into_iter().filter(|(name, _)| before.triggers.get(*name) == after.triggers.get(*name)) {
        take(Statement::schema(after.triggers.get(name).unwrap_or(made).sql.clone(), name))?;
    }
    for (name, made) in &before.triggers {
        if after.triggers.get(name) != Some(made) {
            take(Statement::schema(format!("DROP TRIGGER IF EXISTS {}", quoted(name)), name))?;
        }
    }
    for (name, made) in &after.triggers {
        let rebuilt = pair(&made.of).is_some_and(|pair| pair.old.is_none());
        if before.triggers.get(name) != Some(made) || rebuilt {
            take(Statement::schema(made.sql.clone(), name))?;
        }
    }
    Ok(())
}

/// The tables of the new state with what they were, and those of the old one that are gone.
fn pairs<'a>(before: &'a Catalog, after: &'a Catalog) -> (Vec<Pair<'a>>, Vec<&'a String>) {
    let mut gone: BTreeSet<&String> = before.tables.keys().filter(|name| !after.tables.contains_key(*name)).collect();
    let mut pairs = Vec::new();
    for (name, (root, table)) in &after.tables {
        let was = match before.tables.get(name) {
            Some((old_root, old)) => {
                let alteration = Alteration::between(old, table);
                if alteration.is_none() {
                    gone.insert(name);
                }
                alteration.map(|alteration| ((*old_root, old), alteration))
            }
            None => before.tables.values().find_map(|(old_root, old)| {
                // A table by another name, unless its pages were merely used again.
                let same = old_root == root && gone.contains(&old.name) && table.columns.starts_with(&old.columns);
                let alteration = same.then(|| Alteration::between(old, table)).flatten()?;
                Some(((*old_root, old), alteration))
            }),
        };
        let pair = match was {
            Some((old, alteration)) => {
                gone.remove(&old.1.name);
                Pair { old: Some(old), new: (*root, table), alteration }
            }
            None => {
                let alteration = Alteration { statements: Vec::new(), was: vec![None; table.columns.len()] };
                Pair { old: None, new: (*root, table), alteration }
            }
        };
        pairs.push(pair);
    }
    (pairs, gone.into_iter().collect())
}

/// What was changed of the rows of one table.
fn rows(
    (old, new): (State<'_>, State<'_>),
    pair: &Pair<'_>,
    differing: &Differing,
    shared: Option<State<'_>>,
    take: &mut Take<'_>,
) -> Result<(), ReplicaError> {
    let damaged = || ReplicaError::Record { table: pair.name().to_owned() };
    let before = pair.old.map(|(root, table)| Side { pages: old.pages, root, table });
    let after = Side { pages: new.pages, root: pair.new.0, table: pair.new.1 };
    let writer = Writer::new(before, pair.new.1, &pair.alteration.was);
    let diff = RowDiff::of(differing, before, Some(after))?;
    let same_rowid = |row: &Row| match (shared, before) {
        (Some(shared), Some(before)) if before.table.key == Key::Rowid => {
            match shared.catalog.tables.get(&before.table.name) {
                Some((root, _)) => Ok::<_, ReplicaError>(btree::row(shared.pages, *root, row.rowid)?.is_some()),
                None => Ok(false),
            }
        }
        _ => Ok(true),
    };
    for row in &diff.deleted {
        take(writer.delete(row, same_rowid(row)?).ok_or_else(damaged)?)?;
    }
    let (mut replaced, mut updates) = (Vec::new(), Vec::new());
    for change in &diff.updated {
        match writer.update(change, same_rowid(&change.old)?).ok_or_else(damaged)? {
            Rewritten::Nothing => {}
            Rewritten::Update(statement) => updates.push(statement),
            Rewritten::Replace(statement) => {
                take(statement)?;
                replaced.push(&change.new);
            }
        }
    }
    for statement in updates {
        take(statement)?;
    }
    for row in replaced {
        take(writer.insert(row).ok_or_else(damaged)?)?;
    }
    diff.inserted(|row| take(writer.insert(&row).ok_or_else(damaged)?))
}

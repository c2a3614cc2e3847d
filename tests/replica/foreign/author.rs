//! Writes random SQL: tables of all kinds, and all that is done with them. It knows what there is, as far as what it wrote
//! was taken; what is refused is one of its tries.

mod rows;
mod schema;

use super::super::support::commitlog::Draw;

/// Runs a statement, or says why not.
pub type Run<'a> = dyn FnMut(&str) -> Result<(), String> + 'a;

/// What somebody who writes SQL does not use, since whoever reads it cannot.
#[derive(Clone, Copy, Default)]
pub struct Limits {
    /// Statements that the engine has no or wrong answers to.
    pub is_engine: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Integer,
    Real,
    Text,
    Blob,
    Any,
}

#[derive(Clone, Debug)]
struct Column {
    name: String,
    kind: Kind,
    is_key: bool,
    is_unique: bool,
    is_generated: bool,
}

#[derive(Clone, Debug)]
struct Table {
    name: String,
    columns: Vec<Column>,
    has_rowids: bool,
    strict: bool,
    counts_up: bool,
}

/// All that there is.
#[derive(Clone, Debug, Default)]
struct Made {
    tables: Vec<Table>,
    indexes: Vec<String>,
    views: Vec<String>,
    triggers: Vec<String>,
}

/// Writes SQL.
pub struct Author {
    draw: Draw,
    limits: Limits,
    made: Made,
    /// What there was when the open transaction began.
    before: Option<Made>,
    serial: u64,
}

const TABLES: [&str; 9] = ["t", "u", "two words", "q\"uote", "größe", "select", "it's", "t3", "x.y"];
const COLUMNS: [&str; 14] =
    ["a", "b", "c", "d", "two words", "q\"uote", "größe", "order", "it's", "E", "rowid", "f", "g%", "?1"];
const WORDS: [&str; 12] =
    ["", "a", "A", "b", "ü", "it's", "\"", "line\nbreak", "12", "1.5", " a ", "👋 waves and 日本語"];

/// A name as SQL takes it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

impl Table {
    fn quoted(&self) -> String {
        quoted(&self.name)
    }

    fn written(&self) -> Vec<&Column> {
        self.columns.iter().filter(|column| !column.is_generated).collect()
    }

    fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|column| column.name.eq_ignore_ascii_case(name))
    }
}

impl Author {
    pub fn new(draw: Draw, limits: Limits) -> Author {
        Author { draw, limits, made: Made::default(), before: None, serial: 0 }
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.draw.below(of.len() as u64) as usize].clone()
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.draw.one_in(n)
    }

    /// Makes so many steps, in transactions of any length.
    pub fn write(&mut self, steps: u64, run: &mut Run<'_>) {
        for _ in 0..steps {
            let mut has_failed = false;
            if self.before.is_none() && self.one_in(3) && run("BEGIN").is_ok() {
                self.before = Some(self.made.clone());
            }
            self.step(&mut |sql| {
                let ran = run(sql);
                has_failed |= ran.is_err() && sql.starts_with("ALTER");
                ran
            });
            // Such an error may have ended it.
            if has_failed && let Some(before) = self.before.take() {
                let _is_ended_already = run("ROLLBACK");
                self.made = before;
            }
            if self.before.is_some() && self.one_in(4) {
                self.end(run);
            }
        }
        if self.before.is_some() {
            self.end(run);
        }
    }

    fn end(&mut self, run: &mut Run<'_>) {
        let before = self.before.take().unwrap_or_default();
        // Some errors end it themselves.
        if self.one_in(5) || run("COMMIT").is_err() {
            let _is_ended_already = run("ROLLBACK");
            self.made = before;
        }
    }

    fn step(&mut self, run: &mut Run<'_>) {
        if self.made.tables.len() < 2 {
            return self.create_table(run);
        }
        let at = self.draw.below(self.made.tables.len() as u64) as usize;
        let table = self.made.tables[at].clone();
        match self.draw.below(100) {
            0..5 => self.create_table(run),
            5..8 => self.drop_table(at, run),
            8..10 => self.rename_table(at, run),
            10..14 => self.add_column(at, run),
            14..17 => self.drop_column(at, run),
            17..20 => self.rename_column(at, run),
            20..22 => self.create_table_as(&table, run),
            22..27 => self.create_index(at, run),
            27..29 => self.drop_one_of(run),
            29..31 => self.create_view(&table, run),
            31..35 => self.create_trigger(&table, run),
            35..60 => drop(self.insert(&table, run)),
            60..82 => self.update(&table, run),
            82..86 => self.permute(&table, run),
            86..93 => self.delete(&table, run),
            93..97 => self.edit_in_place(&table, run),
            _ => self.copy_rows(&table, run),
        }
    }
}

//! Writes random SQL: tables of all kinds, and all that is done with them. It knows what there is, as far as what it wrote
//! was taken; what is refused is one of its tries.

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

    fn free_name(&mut self) -> Option<String> {
        let name = self.pick(&TABLES).to_owned();
        let is_free = !self.made.tables.iter().any(|table| table.name.eq_ignore_ascii_case(&name));
        is_free.then_some(name)
    }

    fn create_table(&mut self, run: &mut Run<'_>) {
        if self.made.tables.len() > 5 {
            return;
        }
        let Some(name) = self.free_name() else { return };
        self.create_table_named(name, run);
    }

    fn create_table_named(&mut self, name: String, run: &mut Run<'_>) {
        let how = self.draw.below(9);
        // The engine has no strict tables without rowids.
        let strict = how != 6 && self.one_in(5);
        let mut table = Table { name, columns: Vec::new(), has_rowids: true, strict, counts_up: false };
        let (mut defined, mut constraints) = (Vec::new(), Vec::new());
        for _ in 0..1 + self.draw.below(5) {
            let column = self.pick(&COLUMNS);
            if !table.has(column) {
                let kind = self.kind(strict);
                table.columns.push(Column {
                    name: column.to_owned(),
                    kind,
                    is_key: false,
                    is_unique: false,
                    is_generated: false,
                });
            }
        }
        for at in 0..table.columns.len() {
            let mut sql = self.defined(&table.columns[at], strict);
            let column = &mut table.columns[at];
            match (how, at) {
                (0 | 1, 0) => {
                    column.kind = Kind::Integer;
                    sql = format!("{} INTEGER PRIMARY KEY", quoted(&column.name));
                }
                // The engine makes none in tables with a quote in their name.
                (2, 0) if !table.name.contains('"') => {
                    table.counts_up = true;
                    column.kind = Kind::Integer;
                    sql = format!("{} INTEGER PRIMARY KEY AUTOINCREMENT", quoted(&column.name));
                }
                (3, 0) => {
                    column.kind = Kind::Text;
                    let collate = if self.draw.one_in(3) { " COLLATE NOCASE" } else { "" };
                    sql = format!("{} TEXT PRIMARY KEY{collate}", quoted(&column.name));
                }
                (4, 0) => sql.push_str(" PRIMARY KEY"),
                _ => {
                    // The engine has no other indexes of tables without rowids.
                    if how < 6 && self.draw.one_in(6) {
                        column.is_unique = true;
                        sql.push_str(" UNIQUE");
                    }
                }
            }
            column.is_key = at == 0 && how <= 4;
            defined.push(sql);
        }
        if how == 5 && table.columns.len() > 1 || how == 6 {
            // Without rowids the engine takes one column for another unless the key comes first.
            table.has_rowids = how == 5;
            let of = if table.has_rowids { vec![1, 0] } else { (0..table.columns.len().min(2)).collect() };
            of.iter().for_each(|at| table.columns[*at].is_key = true);
            let names: Vec<String> = of.iter().map(|at| quoted(&table.columns[*at].name)).collect();
            constraints.push(format!("PRIMARY KEY ({})", names.join(", ")));
        }
        if table.columns.len() > 1 && table.has_rowids && self.one_in(6) {
            let names: Vec<String> = table.columns[..2].iter().map(|column| quoted(&column.name)).collect();
            table.columns[..2].iter_mut().for_each(|column| column.is_unique = true);
            constraints.push(format!("UNIQUE ({})", names.join(", ")));
        }
        if self.one_in(10) {
            constraints.push(format!("CHECK ({} IS NOT 'never')", quoted(&table.columns[0].name)));
        }
        if self.one_in(10) && !table.has("gen") && table.has_rowids {
            let of = quoted(&table.columns[0].name);
            let kind = if strict { " ANY" } else { "" };
            defined.push(format!("gen{kind} AS (coalesce({of}, 'none')) VIRTUAL"));
            let (kind, name) = (Kind::Any, "gen".to_owned());
            table.columns.push(Column { name, kind, is_key: false, is_unique: false, is_generated: true });
        }
        let mut options = Vec::new();
        options.extend((!table.has_rowids).then_some("WITHOUT ROWID"));
        options.extend(strict.then_some("STRICT"));
        let all = defined.into_iter().chain(constraints).collect::<Vec<_>>().join(", ");
        let sql = format!("CREATE TABLE {}({all}) {}", table.quoted(), options.join(", "));
        if run(sql.trim_end()).is_ok() {
            for _ in 0..2 {
                self.insert(&table, run);
            }
            self.made.tables.push(table);
        }
    }

    fn kind(&mut self, _strict: bool) -> Kind {
        self.pick(&[Kind::Integer, Kind::Real, Kind::Text, Kind::Blob, Kind::Blob, Kind::Any])
    }

    fn defined(&mut self, column: &Column, strict: bool) -> String {
        let kind = match column.kind {
            Kind::Integer => " INTEGER",
            Kind::Real => " REAL",
            Kind::Text => " TEXT",
            Kind::Blob => " BLOB",
            Kind::Any if strict => " ANY",
            Kind::Any if self.one_in(3) => " NUMERIC",
            Kind::Any => "",
        };
        let more = match self.draw.below(12) {
            0 => format!(" DEFAULT {}", self.default(column.kind)),
            1 => format!(" NOT NULL DEFAULT {}", self.default(column.kind)),
            2 if column.kind == Kind::Text => " COLLATE NOCASE".to_owned(),
            _ => String::new(),
        };
        format!("{}{kind}{more}", quoted(&column.name))
    }

    fn default(&mut self, kind: Kind) -> String {
        match kind {
            Kind::Integer => self.pick(&["0", "-5", "(1 + 2)"]).to_owned(),
            Kind::Real => self.pick(&["1.5", "-2e10", "0.0"]).to_owned(),
            Kind::Text => self.pick(&["'x'", "''", "'it''s'", "'ü'"]).to_owned(),
            Kind::Blob => self.pick(&["x'00ff'", "x''"]).to_owned(),
            Kind::Any => self.pick(&["NULL", "7", "'seven'"]).to_owned(),
        }
    }

    /// A value that a column takes, most of them.
    fn value(&mut self, column: &Column, strict: bool) -> String {
        if column.is_key || column.is_unique {
            return self.key(column.kind);
        }
        if self.one_in(8) {
            return "NULL".to_owned();
        }
        let kind = match column.kind {
            Kind::Any => self.pick(&[Kind::Integer, Kind::Real, Kind::Text, Kind::Blob]),
            // Types are advice.
            _ if !strict && self.one_in(10) => self.pick(&[Kind::Integer, Kind::Real, Kind::Text, Kind::Blob]),
            kind => kind,
        };
        match kind {
            Kind::Integer => {
                let small = self.draw.below(600) as i64 - 300;
                let large = self.draw.below(u64::MAX) as i64;
                let values = [small, large, i64::MAX, -i64::MAX, 1 << 47, -(1 << 31), 0, 1, 127, 128, -129, 32768];
                self.pick(&values).to_string()
            }
            Kind::Real => {
                let any = format!("{:?}", f64::from_bits(self.draw.below(u64::MAX)));
                let any = if any.contains(['N', 'i']) { "0.1".to_owned() } else { any };
                let values = ["9e999", "-9e999", "0.0", "-0.0", "3.0", "1e300", "5e-324", "0.1", "9007199254740993.0"];
                if self.one_in(2) { any } else { self.pick(&values).to_owned() }
            }
            Kind::Text | Kind::Any => match self.draw.below(10) {
                0 => text(&"long ü ".repeat(self.draw.below(900) as usize)),
                _ => text(self.pick(&WORDS)),
            },
            Kind::Blob => {
                let long = match self.draw.below(12) {
                    0 => 20_000,
                    1 => 4_300,
                    2 => 1_200,
                    _ => 12,
                };
                let count = self.draw.below(long + 1) as usize;
                let piece = self.draw.bytes(64);
                let hex: String = piece.iter().cycle().take(count).map(|byte| format!("{byte:02x}")).collect();
                format!("x'{hex}'")
            }
        }
    }

    /// One of few values, so that others have it, or one that nobody has.
    fn key(&mut self, kind: Kind) -> String {
        self.serial += 1;
        let number = if self.one_in(2) { self.draw.below(60) } else { self.serial + 100 };
        match kind {
            _ if self.one_in(25) => "NULL".to_owned(),
            Kind::Integer if self.one_in(20) => self.pick(&[i64::MAX - 1, i64::MIN, -1]).to_string(),
            Kind::Integer | Kind::Any => number.to_string(),
            Kind::Real => format!("{number}.5"),
            Kind::Text if self.one_in(6) => text(self.pick(&WORDS)),
            Kind::Text => format!("'k{number}'"),
            Kind::Blob => format!("x'{:08x}'", number),
        }
    }

    fn rows(&mut self, table: &Table, columns: &[&Column]) -> String {
        let count = match self.draw.below(20) {
            0 => 300,
            1..4 => 40,
            _ => 1 + self.draw.below(6),
        };
        let rows: Vec<String> = (0..count)
            .map(|_| {
                let values: Vec<String> = columns.iter().map(|column| self.value(column, table.strict)).collect();
                format!("({})", values.join(", "))
            })
            .collect();
        rows.join(", ")
    }

    fn insert(&mut self, table: &Table, run: &mut Run<'_>) -> Option<()> {
        let mut columns = table.written();
        if columns.len() > 1 && self.one_in(4) {
            let at = self.draw.below(columns.len() as u64) as usize;
            columns.remove(at);
        }
        if self.one_in(40) {
            return run(&format!("INSERT INTO {} DEFAULT VALUES", table.quoted())).ok();
        }
        let names: Vec<String> = columns.iter().map(|column| quoted(&column.name)).collect();
        let rows = self.rows(table, &columns);
        let many = rows.len();
        let into = format!("INTO {}({})", table.quoted(), names.join(", "));
        let how = if self.can_change(table) { self.draw.below(10) } else { 9 };
        let sql = match how {
            0 => format!("REPLACE {into} VALUES {rows}"),
            1..5 => format!("INSERT OR IGNORE {into} VALUES {rows}"),
            5..7 => {
                let set: Vec<String> = names.iter().map(|name| format!("{name} = excluded.{name}")).collect();
                let keys: Vec<String> =
                    table.columns.iter().filter(|column| column.is_key).map(|column| quoted(&column.name)).collect();
                let of = if keys.is_empty() { String::new() } else { format!("({})", keys.join(", ")) };
                let then = if of.is_empty() || self.one_in(4) {
                    "NOTHING".to_owned()
                } else {
                    format!("UPDATE SET {}", self.pick(&set))
                };
                format!("INSERT {into} VALUES {rows} ON CONFLICT{of} DO {then}")
            }
            _ if many > 20_000 && table.has_rowids => format!("INSERT OR IGNORE {into} VALUES {rows}"),
            _ => format!("INSERT {into} VALUES {rows}"),
        };
        run(&sql).ok()
    }

    /// ` WHERE …`: a part of the rows, or nothing for all.
    fn part(&mut self, table: &Table) -> String {
        let column = self.pick(&table.columns);
        let name = quoted(&column.name);
        match self.draw.below(8) {
            0 => String::new(),
            1 => format!(" WHERE {name} IS NULL"),
            2 | 3 => format!(" WHERE {name} = {}", self.value(&column, table.strict)),
            4 => format!(" WHERE {name} > {}", self.value(&column, table.strict)),
            _ if !table.has("rowid") && table.has_rowids => {
                let of = self.draw.within(2..9);
                format!(" WHERE rowid % {of} = {}", self.draw.below(of))
            }
            _ => format!(" WHERE length({name}) % 2 = 1"),
        }
    }

    /// The engine can only add rows where there are no rowids.
    fn can_change(&self, table: &Table) -> bool {
        table.has_rowids || !self.limits.is_engine
    }

    fn update(&mut self, table: &Table, run: &mut Run<'_>) {
        if !self.can_change(table) {
            return;
        }
        let mut set = Vec::new();
        let columns = table.written();
        for _ in 0..1 + self.draw.below(2) {
            let column = self.pick(&columns);
            let (name, other) = (quoted(&column.name), quoted(&self.pick(&table.columns).name));
            let to = match (column.kind, self.draw.below(6)) {
                (Kind::Integer, 0) => format!("{name} + 1"),
                (Kind::Integer, 1) => format!("{name} - 1"),
                (Kind::Integer, 2) => format!("-{name}"),
                // Of a blob it would make a text that is none.
                (Kind::Text, 0) => format!("iif(typeof({name}) = 'text', {name} || 'x', {name})"),
                (Kind::Text, 1) => format!("iif(typeof({name}) = 'text', upper({name}), {name})"),
                (Kind::Blob, 0) => format!("CAST({name} || x'01' AS BLOB)"),
                (_, 3) if !table.strict => other,
                _ => self.value(column, table.strict),
            };
            set.push(format!("{name} = {to}"));
        }
        let or = self.pick(&["", "", " OR IGNORE", " OR REPLACE"]);
        let part = self.part(table);
        let _may_be_refused = run(&format!("UPDATE{or} {} SET {}{part}", table.quoted(), set.join(", ")));
    }

    /// Rows swap or shift values that no two may share: by way of others that nobody has.
    fn permute(&mut self, table: &Table, run: &mut Run<'_>) {
        if !self.can_change(table) {
            return;
        }
        let unique: Vec<&Column> =
            table.written().into_iter().filter(|column| column.is_key || column.is_unique).collect();
        if unique.is_empty() {
            return;
        }
        let column = self.pick(&unique);
        let (table, name) = (table.quoted(), quoted(&column.name));
        let whole = self.before.is_none() && run("BEGIN").is_ok();
        let steps = match column.kind {
            Kind::Integer | Kind::Any => {
                let back =
                    if self.one_in(2) { format!("-5000000 - {name} + 1") } else { format!("60 - (-5000000 - {name})") };
                let part = format!("WHERE typeof({name}) = 'integer' AND {name}");
                [
                    format!("UPDATE {table} SET {name} = -5000000 - {name} {part} BETWEEN 0 AND 60"),
                    format!("UPDATE {table} SET {name} = {back} {part} BETWEEN -5000060 AND -5000000"),
                ]
            }
            Kind::Text => {
                let (one, other) = (self.draw.below(40), self.draw.below(40));
                let back = format!(
                    "CASE {name} WHEN '#k{one}' THEN 'k{other}' WHEN '#k{other}' THEN 'k{one}' ELSE substr({name}, 2) END"
                );
                [
                    format!("UPDATE {table} SET {name} = '#' || {name} WHERE typeof({name}) = 'text'"),
                    format!("UPDATE {table} SET {name} = {back} WHERE typeof({name}) = 'text' AND {name} LIKE '#%'"),
                ]
            }
            _ => [format!("UPDATE {table} SET {name} = {name}"), format!("DELETE FROM {table} WHERE {name} IS NULL")],
        };
        for sql in &steps {
            if run(sql).is_err() {
                break;
            }
        }
        if whole && run("COMMIT").is_err() {
            let _is_ended_already = run("ROLLBACK");
        }
    }

    fn delete(&mut self, table: &Table, run: &mut Run<'_>) {
        if !self.can_change(table) {
            return;
        }
        let part = self.part(table);
        // All of it seldom: there would be nothing left.
        if !part.is_empty() || self.one_in(4) {
            let _may_be_refused = run(&format!("DELETE FROM {}{part}", table.quoted()));
        }
    }

    /// A byte in the middle of long values becomes another, while their length stays.
    fn edit_in_place(&mut self, table: &Table, run: &mut Run<'_>) {
        let blobs: Vec<&Column> = table
            .written()
            .into_iter()
            .filter(|column| matches!(column.kind, Kind::Blob | Kind::Any) && !column.is_key && !column.is_unique)
            .collect();
        if blobs.is_empty() || !self.can_change(table) {
            return;
        }
        let name = quoted(&self.pick(&blobs).name);
        let long = [5_000, 9_000, 1_300];
        if self.one_in(2) {
            let bytes = self.draw.bytes(8);
            let hex: String =
                bytes.iter().cycle().take(self.pick(&[6_000, 17_000])).map(|byte| format!("{byte:02x}")).collect();
            let part = self.part(table);
            let _may_be_refused = run(&format!("UPDATE {} SET {name} = x'{hex}'{part}", table.quoted()));
        }
        let (at, byte) = (self.pick(&long), self.draw.below(256));
        let (before, behind) = (at - 1, at + 1);
        let sql = format!(
            "UPDATE {} SET {name} = CAST(substr({name}, 1, {before}) || x'{byte:02x}' || substr({name}, {behind}) AS BLOB) \
             WHERE length({name}) > {at} AND typeof({name}) = 'blob'",
            table.quoted()
        );
        let _may_be_refused = run(&sql);
    }

    /// Rows of a table once more, in it or in another.
    fn copy_rows(&mut self, table: &Table, run: &mut Run<'_>) {
        let into = self.pick(&self.made.tables.clone());
        let columns = into.written();
        let names: Vec<String> = columns.iter().map(|column| quoted(&column.name)).collect();
        let from: Vec<String> = (0..names.len()).map(|_| quoted(&self.pick(&table.columns).name)).collect();
        let or = if self.can_change(&into) { self.pick(&[" OR IGNORE", " OR REPLACE"]) } else { "" };
        let sql = format!(
            "INSERT{or} INTO {}({}) SELECT {} FROM {} LIMIT 30",
            into.quoted(),
            names.join(", "),
            from.join(", "),
            table.quoted()
        );
        let _may_be_refused = run(&sql);
    }

    fn drop_table(&mut self, at: usize, run: &mut Run<'_>) {
        let table = self.made.tables[at].clone();
        if run(&format!("DROP TABLE {}", table.quoted())).is_ok() {
            self.made.tables.remove(at);
            if self.one_in(2) {
                self.create_table_named(table.name, run);
            }
        }
    }

    fn rename_table(&mut self, at: usize, run: &mut Run<'_>) {
        let Some(name) = self.free_name() else { return };
        if self.made.tables[at].counts_up && name.contains('"') {
            return;
        }
        let sql = format!("ALTER TABLE {} RENAME TO {}", self.made.tables[at].quoted(), quoted(&name));
        if run(&sql).is_ok() {
            self.made.tables[at].name = name;
        }
    }

    fn add_column(&mut self, at: usize, run: &mut Run<'_>) {
        let (table, name) = (self.made.tables[at].clone(), self.pick(&COLUMNS).to_owned());
        if table.has(&name) || table.columns.len() > 8 {
            return;
        }
        let kind = self.kind(table.strict);
        let column = Column { name, kind, is_key: false, is_unique: false, is_generated: false };
        let defined = self.defined(&column, table.strict);
        // Where rows cannot be changed they must not be.
        let defined = if table.has_rowids { defined } else { quoted(&column.name) };
        if run(&format!("ALTER TABLE {} ADD COLUMN {defined}", table.quoted())).is_ok() {
            self.made.tables[at].columns.push(column);
        }
    }

    fn drop_column(&mut self, at: usize, run: &mut Run<'_>) {
        let table = self.made.tables[at].clone();
        // The engine leaves values of such a column where they are if there are no rowids.
        if self.limits.is_engine && !table.has_rowids {
            return;
        }
        let column = self.draw.below(table.columns.len() as u64) as usize;
        let name = quoted(&table.columns[column].name);
        if run(&format!("ALTER TABLE {} DROP COLUMN {name}", table.quoted())).is_ok() {
            self.made.tables[at].columns.remove(column);
        }
    }

    fn rename_column(&mut self, at: usize, run: &mut Run<'_>) {
        let (table, name) = (self.made.tables[at].clone(), self.pick(&COLUMNS).to_owned());
        // The engine takes one column for another once it has renamed one of a key without rowids.
        if table.has(&name) || self.limits.is_engine && !table.has_rowids {
            return;
        }
        let column = self.draw.below(table.columns.len() as u64) as usize;
        let (from, to) = (quoted(&table.columns[column].name), quoted(&name));
        if run(&format!("ALTER TABLE {} RENAME COLUMN {from} TO {to}", table.quoted())).is_ok() {
            self.made.tables[at].columns[column].name = name;
        }
    }

    fn create_table_as(&mut self, table: &Table, run: &mut Run<'_>) {
        let Some(name) = self.free_name() else { return };
        // Types of a strict table mean something else in others.
        if self.made.tables.len() > 5 || table.strict {
            return;
        }
        let columns: Vec<Column> = table.written().into_iter().take(3).cloned().collect();
        let names: Vec<String> = columns.iter().map(|column| quoted(&column.name)).collect();
        let sql = format!("CREATE TABLE {} AS SELECT {} FROM {}", quoted(&name), names.join(", "), table.quoted());
        if run(&sql).is_ok() {
            let columns =
                columns.into_iter().map(|column| Column { is_key: false, is_unique: false, ..column }).collect();
            self.made.tables.push(Table { name, columns, has_rowids: true, strict: false, counts_up: false });
        }
    }

    fn create_index(&mut self, at: usize, run: &mut Run<'_>) {
        let table = self.made.tables[at].clone();
        if !table.has_rowids {
            return;
        }
        self.serial += 1;
        let (name, on) = (format!("i \"{}", self.serial), table.quoted());
        let column = self.draw.below(table.columns.len() as u64) as usize;
        let of = quoted(&table.columns[column].name);
        let also = quoted(&self.pick(&table.columns).name);
        let is_unique = self.one_in(2);
        let unique = if is_unique { "UNIQUE " } else { "" };
        let what = match self.draw.below(7) {
            0 => format!("{on}({of} DESC, {also})"),
            1 => format!("{on}({of}) WHERE {also} IS NOT NULL"),
            2 => format!("{on}({of}) WHERE {also} > 10"),
            3 => format!("{on}(coalesce({of}, 'none'))"),
            4 => format!("{on}({of} COLLATE NOCASE)"),
            5 => format!("{on}(typeof({of}), {also})"),
            _ => format!("{on}({of})"),
        };
        if run(&format!("CREATE {unique}INDEX {} ON {what}", quoted(&name))).is_ok() {
            self.made.tables[at].columns[column].is_unique |= is_unique;
            self.made.indexes.push(name);
        }
    }

    fn create_view(&mut self, table: &Table, run: &mut Run<'_>) {
        self.serial += 1;
        let (name, of) = (format!("v {}", self.serial), quoted(&table.columns[0].name));
        let sql = format!("CREATE VIEW {} AS SELECT {of} AS x FROM {}", quoted(&name), table.quoted());
        if run(&sql).is_ok() {
            self.made.views.push(name);
        }
    }

    /// What it does to other tables must not be done twice.
    fn create_trigger(&mut self, table: &Table, run: &mut Run<'_>) {
        self.serial += 1;
        let name = format!("g {}", self.serial);
        if !self.made.tables.iter().any(|table| table.name == "log") {
            let sql = "CREATE TABLE log(n INTEGER PRIMARY KEY, what, at INTEGER DEFAULT 1)";
            if self.made.tables.iter().any(|table| table.name.eq_ignore_ascii_case("log")) || run(sql).is_err() {
                return;
            }
            let column = |name: &str, kind, is_key| Column {
                name: name.to_owned(),
                kind,
                is_key,
                is_unique: false,
                is_generated: false,
            };
            self.made.tables.push(Table {
                name: "log".to_owned(),
                columns: vec![
                    column("n", Kind::Integer, true),
                    column("what", Kind::Any, false),
                    column("at", Kind::Integer, false),
                ],
                has_rowids: true,
                strict: false,
                counts_up: false,
            });
        }
        if table.name == "log" {
            return;
        }
        let of = quoted(&table.columns[0].name);
        let on = match self.draw.below(4) {
            0 => "AFTER INSERT".to_owned(),
            1 => "AFTER DELETE".to_owned(),
            2 => "BEFORE UPDATE".to_owned(),
            _ => format!("AFTER UPDATE OF {of}"),
        };
        let row = if on.contains("DELETE") { "old" } else { "new" };
        let when = if self.one_in(3) { format!(" WHEN {row}.{of} IS NOT NULL") } else { String::new() };
        let what = match self.draw.below(3) {
            0 => format!("INSERT INTO log(what) VALUES ({row}.{of});"),
            1 => "UPDATE log SET at = at + 1 WHERE n % 3 = 1;".to_owned(),
            _ => format!("INSERT INTO log(what) VALUES ('{} it''s'); DELETE FROM log WHERE n % 5 = 0;", self.serial),
        };
        let sql = format!("CREATE TRIGGER {} {on} ON {}{when} BEGIN {what} END", quoted(&name), table.quoted());
        if run(&sql).is_ok() {
            self.made.triggers.push(name);
        }
    }

    fn drop_one_of(&mut self, run: &mut Run<'_>) {
        let (kind, names) = match self.draw.below(3) {
            0 => ("INDEX", &mut self.made.indexes),
            1 => ("VIEW", &mut self.made.views),
            _ => ("TRIGGER", &mut self.made.triggers),
        };
        if let Some(name) = names.pop() {
            let _is_gone_with_its_table = run(&format!("DROP {kind} {}", quoted(&name)));
        }
    }
}

//! Tables, indexes, views and triggers: made, altered and dropped.

use super::{Author, COLUMNS, Column, Kind, Run, TABLES, Table, quoted};

impl Author {
    pub(super) fn free_name(&mut self) -> Option<String> {
        let name = self.pick(&TABLES).to_owned();
        let is_free = !self.made.tables.iter().any(|table| table.name.eq_ignore_ascii_case(&name));
        is_free.then_some(name)
    }

    pub(super) fn create_table(&mut self, run: &mut Run<'_>) {
        if self.made.tables.len() > 5 {
            return;
        }
        let Some(name) = self.free_name() else { return };
        self.create_table_named(name, run);
    }

    pub(super) fn create_table_named(&mut self, name: String, run: &mut Run<'_>) {
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

    pub(super) fn kind(&mut self, _strict: bool) -> Kind {
        self.pick(&[Kind::Integer, Kind::Real, Kind::Text, Kind::Blob, Kind::Blob, Kind::Any])
    }

    pub(super) fn defined(&mut self, column: &Column, strict: bool) -> String {
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

    pub(super) fn default(&mut self, kind: Kind) -> String {
        match kind {
            Kind::Integer => self.pick(&["0", "-5", "(1 + 2)"]).to_owned(),
            Kind::Real => self.pick(&["1.5", "-2e10", "0.0"]).to_owned(),
            Kind::Text => self.pick(&["'x'", "''", "'it''s'", "'ü'"]).to_owned(),
            Kind::Blob => self.pick(&["x'00ff'", "x''"]).to_owned(),
            Kind::Any => self.pick(&["NULL", "7", "'seven'"]).to_owned(),
        }
    }

    pub(super) fn drop_table(&mut self, at: usize, run: &mut Run<'_>) {
        let table = self.made.tables[at].clone();
        if run(&format!("DROP TABLE {}", table.quoted())).is_ok() {
            self.made.tables.remove(at);
            if self.one_in(2) {
                self.create_table_named(table.name, run);
            }
        }
    }

    pub(super) fn rename_table(&mut self, at: usize, run: &mut Run<'_>) {
        let Some(name) = self.free_name() else { return };
        if self.made.tables[at].counts_up && name.contains('"') {
            return;
        }
        let sql = format!("ALTER TABLE {} RENAME TO {}", self.made.tables[at].quoted(), quoted(&name));
        if run(&sql).is_ok() {
            self.made.tables[at].name = name;
        }
    }

    pub(super) fn add_column(&mut self, at: usize, run: &mut Run<'_>) {
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

    pub(super) fn drop_column(&mut self, at: usize, run: &mut Run<'_>) {
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

    pub(super) fn rename_column(&mut self, at: usize, run: &mut Run<'_>) {
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

    pub(super) fn create_table_as(&mut self, table: &Table, run: &mut Run<'_>) {
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

    pub(super) fn create_index(&mut self, at: usize, run: &mut Run<'_>) {
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

    pub(super) fn create_view(&mut self, table: &Table, run: &mut Run<'_>) {
        self.serial += 1;
        let (name, of) = (format!("v {}", self.serial), quoted(&table.columns[0].name));
        let sql = format!("CREATE VIEW {} AS SELECT {of} AS x FROM {}", quoted(&name), table.quoted());
        if run(&sql).is_ok() {
            self.made.views.push(name);
        }
    }

    /// What it does to other tables must not be done twice.
    pub(super) fn create_trigger(&mut self, table: &Table, run: &mut Run<'_>) {
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

    pub(super) fn drop_one_of(&mut self, run: &mut Run<'_>) {
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

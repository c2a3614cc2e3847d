//! Values and rows: added, changed and removed.

use super::{Author, Column, Kind, Run, Table, WORDS, quoted, text};

impl Author {
    /// A value that a column takes, most of them.
    pub(super) fn value(&mut self, column: &Column, strict: bool) -> String {
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
    pub(super) fn key(&mut self, kind: Kind) -> String {
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

    pub(super) fn rows(&mut self, table: &Table, columns: &[&Column]) -> String {
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

    pub(super) fn insert(&mut self, table: &Table, run: &mut Run<'_>) -> Option<()> {
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
    pub(super) fn part(&mut self, table: &Table) -> String {
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
    pub(super) fn can_change(&self, table: &Table) -> bool {
        table.has_rowids || !self.limits.is_engine
    }

    pub(super) fn update(&mut self, table: &Table, run: &mut Run<'_>) {
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
    pub(super) fn permute(&mut self, table: &Table, run: &mut Run<'_>) {
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

    pub(super) fn delete(&mut self, table: &Table, run: &mut Run<'_>) {
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
    pub(super) fn edit_in_place(&mut self, table: &Table, run: &mut Run<'_>) {
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
    pub(super) fn copy_rows(&mut self, table: &Table, run: &mut Run<'_>) {
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
}

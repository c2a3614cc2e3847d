use std::sync::Arc;
use turso_core::*;
#[test]
fn scratch() {
    let path = std::env::var("DB").unwrap();
    let io = Database::io_for_path(&path).unwrap();
    let features = DatabaseOpts::default().with_generated_columns(true).with_without_rowid(true);
    let options = OpenOptions::new(Arc::new(SqliteDialect)).flags(OpenFlags::Create).db_opts(features);
    let db = match Database::do_open(io, &path, options) {
        Ok(d) => d,
        Err(e) => {
            println!("OPEN {e}");
            return;
        }
    };
    let c = db.connect().unwrap();
    for sql in std::fs::read_to_string(std::env::var("SQL").unwrap()).unwrap().split(";;") {
        let sql = sql.trim();
        if sql.is_empty() {
            continue;
        }
        let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            c.prepare(sql).and_then(|mut q| q.run_collect_rows())
        }));
        match r {
            Ok(Ok(rows)) => {
                println!("OK {sql}");
                for r in rows {
                    println!(
                        "   {}",
                        r.iter()
                            .map(|v| format!("{v:?}").chars().take(200).collect::<String>())
                            .collect::<Vec<_>>()
                            .join(" | ")
                    )
                }
            }
            Ok(Err(e)) => println!("ERR {sql}\n   {e}"),
            Err(_) => println!("PANIC {sql}"),
        }
    }
}

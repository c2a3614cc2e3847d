// What every SQL client shows, whatever its interface. A driver has
//   rows(sql, args): rows as arrays; integers as BigInt or number, blobs as bytes
//   run(sql, args)
//   batch([[sql, args], …]): in one transaction
//   begin(): { rows, run, commit, rollback }
//   code(error): what tells a program which error it is
//   close()
// A suite says what its driver has not, and those checks are left out.

import assert from 'node:assert/strict';
import { errorOf } from './checks.mjs';

export const INTEGERS = [-(2n ** 63n), -1n, 0n, 1n, 2n ** 53n + 1n, 2n ** 63n - 1n];
export const FLOATS = [0.1, -1.5, 1e300, 5e-324, Number.MAX_VALUE, Number.EPSILON];
export const BLOBS = [new Uint8Array(0), Uint8Array.from({ length: 256 }, (_, byte) => byte)];
const ROWS = 10_000;

/** Every character there is, in one text: surrogates are none, and NUL would end the text for clients in C. */
export function allOfUnicode() {
    const parts = [];
    for (let code = 1; code <= 0x10ffff; code++) {
        if (code < 0xd800 || code > 0xdfff) parts.push(String.fromCodePoint(code));
    }
    return parts.join('');
}

/** A blob as plain bytes, whatever class a client gives it. */
export const bytes = (value) => [...new Uint8Array(value.buffer ?? value, value.byteOffset ?? 0, value.byteLength)];

/** Rows with small integers as numbers. */
export const plain = (rows) =>
    rows.map((row) => [...row].map((value) => (typeof value === 'bigint' ? Number(value) : value)));

/** Codes that say which constraint it was are as good as the plain one. */
const isConstraint = (code) => /^SQLITE_CONSTRAINT/.test(code);

/** How many checks there are for a driver that has everything. */
export const SQL_CHECKS = 12;

/** `batch` and `begin` say whether drivers have them, `blocks` whether a call blocks the thread: that is one check less, or two, or one. */
export async function sqlChecks(checks, open, { batch = true, begin = true, blocks = false } = {}) {
    const check = (name, body) =>
        checks.check(name, async (url, home) => {
            const opened = [];
            const another = async () => {
                opened.push(await open(url, home));
                return opened.at(-1);
            };
            try {
                await body(await another(), another);
            } finally {
                for (const driver of opened) await driver.close();
            }
        });

    await check('values of every kind', async (db) => {
        await db.run('CREATE TABLE v(id INTEGER PRIMARY KEY, i INTEGER, r REAL, b BLOB, n)');
        for (const [at, integer] of INTEGERS.entries()) {
            const blob = BLOBS[at % BLOBS.length];
            await db.run('INSERT INTO v VALUES (?, ?, ?, ?, ?)', [at, integer, FLOATS[at], blob, null]);
        }
        const rows = await db.rows('SELECT i, r, b, n, typeof(i), typeof(r), typeof(b), typeof(n) FROM v ORDER BY id');
        for (const [at, [i, r, b, n, ...types]] of rows.entries()) {
            assert.equal(BigInt(i), INTEGERS[at]);
            assert.equal(r, FLOATS[at]);
            assert.deepEqual(bytes(b), [...BLOBS[at % BLOBS.length]]);
            assert.equal(n, null);
            assert.deepEqual(types, ['integer', 'real', 'blob', 'null']);
        }
        assert.equal(rows.length, INTEGERS.length);
    });

    await check('text with all of Unicode', async (db) => {
        const text = allOfUnicode();
        await db.run('CREATE TABLE t(v TEXT)');
        await db.run('INSERT INTO t VALUES (?)', [text]);
        const [[stored, length]] = await db.rows('SELECT v, length(v) FROM t');
        assert.ok(stored === text, 'the text came back as another');
        assert.equal(Number(length), [...text].length);
    });

    await check('a failed statement has a code and leaves the connection usable', async (db) => {
        await db.run('CREATE TABLE p(id INTEGER PRIMARY KEY, u TEXT UNIQUE, c INT NOT NULL CHECK (c > 0))');
        await db.run('CREATE TABLE k(p INT REFERENCES p(id))');
        await db.run("INSERT INTO p VALUES (1, 'a', 1)");
        for (const [sql, says] of [
            ["INSERT INTO p VALUES (1, 'b', 1)", /UNIQUE.*p\.id/],
            ["INSERT INTO p VALUES (2, 'a', 1)", /UNIQUE.*p\.u/],
            ["INSERT INTO p VALUES (2, 'b', NULL)", /NOT NULL.*p\.c/],
            ["INSERT INTO p VALUES (2, 'b', 0)", /CHECK/],
            ['INSERT INTO k VALUES (7)', /FOREIGN KEY/],
        ]) {
            const error = await errorOf(() => db.run(sql));
            assert.match(error.message, says, sql);
            assert.ok(isConstraint(db.code(error)), `${sql}: code ${db.code(error)}`);
        }
        for (const sql of ['SELECT * FROM nowhere', 'SELCT 1']) {
            assert.equal(db.code(await errorOf(() => db.rows(sql))), 'SQLITE_ERROR', sql);
        }
        assert.deepEqual(plain(await db.rows('SELECT * FROM p')), [[1, 'a', 1]]);
    });

    await check('AUTOINCREMENT gives no key twice', async (db) => {
        await db.run('CREATE TABLE a(id INTEGER PRIMARY KEY AUTOINCREMENT, v TEXT)');
        for (const v of ['one', 'two']) await db.run('INSERT INTO a(v) VALUES (?)', [v]);
        await db.run('DELETE FROM a');
        await db.run("INSERT INTO a(v) VALUES ('three')");
        assert.deepEqual(plain(await db.rows('SELECT id, v FROM a')), [[3, 'three']]);
        assert.deepEqual(plain(await db.rows("SELECT seq FROM sqlite_sequence WHERE name = 'a'")), [[3]]);
    });

    await check('foreign keys cascade', async (db) => {
        await db.run('CREATE TABLE p(id INTEGER PRIMARY KEY)');
        await db.run(
            'CREATE TABLE k(id INTEGER PRIMARY KEY, p INT REFERENCES p(id) ON DELETE CASCADE ON UPDATE CASCADE)',
        );
        await db.run('CREATE TABLE n(id INTEGER PRIMARY KEY, p INT REFERENCES p(id) ON DELETE SET NULL)');
        await db.run('INSERT INTO p VALUES (1), (2)');
        await db.run('INSERT INTO k VALUES (1, 1), (2, 1), (3, 2)');
        await db.run('INSERT INTO n VALUES (1, 1)');
        await db.run('DELETE FROM p WHERE id = 1');
        await db.run('UPDATE p SET id = 9 WHERE id = 2');
        assert.deepEqual(plain(await db.rows('SELECT * FROM k')), [[3, 9]]);
        assert.deepEqual(plain(await db.rows('SELECT * FROM n')), [[1, null]]);
    });

    await check('10,000 rows in one result', async (db) => {
        await db.run('CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)');
        for (let from = 0; from < ROWS; from += 500) {
            const values = Array.from({ length: 500 }, (_, at) => `(${from + at}, 'row ${from + at}')`);
            await db.run(`INSERT INTO t VALUES ${values.join()}`);
        }
        const rows = plain(await db.rows('SELECT id, v FROM t ORDER BY id'));
        assert.equal(rows.length, ROWS);
        assert.ok(rows.every(([id, v], at) => id === at && v === `row ${at}`));
    });

    await check('two connections at once', async (db, another) => {
        const other = await another();
        await db.run('CREATE TABLE c(n INT)');
        await db.run('INSERT INTO c VALUES (0)');
        const add = async (driver) => {
            for (let n = 0; n < 20; n++) await driver.run('UPDATE c SET n = n + 1');
        };
        await Promise.all([add(db), add(other)]);
        assert.deepEqual(plain(await other.rows('SELECT n FROM c')), [[40]]);
        // What one has prepared, another may change.
        await other.run('ALTER TABLE c ADD COLUMN more TEXT');
        assert.deepEqual(plain(await db.rows('SELECT * FROM c')), [[40, null]]);
    });

    await check('a schema made twice', async (db) => {
        for (let time = 0; time < 2; time++) {
            await db.run('CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v TEXT)');
            await db.run('CREATE UNIQUE INDEX IF NOT EXISTS t_v ON t(v)');
            await db.run('CREATE VIEW IF NOT EXISTS w AS SELECT v FROM t');
        }
        for (const sql of ['CREATE TABLE t(x)', 'CREATE INDEX t_v ON t(v)', 'ALTER TABLE t ADD COLUMN v']) {
            await errorOf(() => db.run(sql));
        }
        const names = await db.rows('SELECT type, name FROM sqlite_schema ORDER BY name');
        assert.deepEqual(plain(names), [['table', 't'], ['index', 't_v'], ['view', 'w']]);
    });

    if (batch) {
        await check('a batch is whole or not there', async (db) => {
            await db.batch([['CREATE TABLE t(id INTEGER PRIMARY KEY)'], ['INSERT INTO t VALUES (?)', [1]]]);
            const fails = [['INSERT INTO t VALUES (?)', [2]], ['INSERT INTO t VALUES (?)', [1]]];
            assert.ok(isConstraint(db.code(await errorOf(() => db.batch(fails)))));
            assert.deepEqual(plain(await db.rows('SELECT id FROM t')), [[1]]);
        });
    }
    if (!begin) return;

    await check('a transaction is seen by others once it is committed', async (db, another) => {
        const other = await another();
        await db.run('CREATE TABLE t(id INTEGER PRIMARY KEY)');
        const transaction = await db.begin();
        await transaction.run('INSERT INTO t VALUES (?)', [1]);
        assert.deepEqual(plain(await transaction.rows('SELECT id FROM t')), [[1]]);
        assert.deepEqual(plain(await other.rows('SELECT id FROM t')), []);
        await transaction.commit();
        assert.deepEqual(plain(await other.rows('SELECT id FROM t')), [[1]]);
    });

    await check('a transaction that is rolled back leaves nothing', async (db, another) => {
        await db.run('CREATE TABLE t(id INTEGER PRIMARY KEY)');
        const transaction = await db.begin();
        await transaction.run('INSERT INTO t VALUES (1)');
        await errorOf(() => transaction.run('INSERT INTO t VALUES (1)'));
        await transaction.rollback();
        await (await another()).run('INSERT INTO t VALUES (2)');
        assert.deepEqual(plain(await db.rows('SELECT id FROM t')), [[2]]);
    });

    if (blocks) return;
    await check('transactions of two connections lose no update', async (db, another) => {
        const other = await another();
        await db.run('CREATE TABLE c(n INT)');
        await db.run('INSERT INTO c VALUES (0)');
        const add = async (driver) => {
            for (let n = 0; n < 10; n++) {
                const transaction = await driver.begin();
                const [[found]] = plain(await transaction.rows('SELECT n FROM c'));
                await transaction.run('UPDATE c SET n = ?', [found + 1]);
                await transaction.commit();
            }
        };
        await Promise.all([add(db), add(other)]);
        assert.deepEqual(plain(await db.rows('SELECT n FROM c')), [[20]]);
    });
}

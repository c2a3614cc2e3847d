// @tursodatabase/sync: values, keys and large results through a replica. What else it shows is in tests/turso.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { Checks, errorOf, load, plainRows } from './checks.mjs';
import { BLOBS, FLOATS, INTEGERS, allOfUnicode, bytes, plain } from './common.mjs';

const { connect } = await load('@tursodatabase/sync');
const checks = new Checks('@tursodatabase/sync', '@tursodatabase/sync', 3);

const check = (name, body) =>
    checks.check(name, async (url, home) => {
        const open = (file) => connect({ path: join(home, `${file}.db`), url: url.replace(/\/$/, '') });
        const [one, two] = [await open('one'), await open('two')];
        await body(one, two, url);
        await one.close();
        await two.close();
    });

const all = async (database, sql) => (await database.prepare(sql)).raw().safeIntegers(true).all();

await check('values of every kind go up and come down', async (one, two, url) => {
    await one.exec('CREATE TABLE v(id INTEGER PRIMARY KEY, i INTEGER, r REAL, b BLOB, n, t TEXT)');
    const text = allOfUnicode();
    const insert = await one.prepare('INSERT INTO v VALUES (?, ?, ?, ?, ?, ?)');
    for (const [at, integer] of INTEGERS.entries()) await insert.run(at, integer, FLOATS[at], BLOBS[at % 2], null, at ? '' : text);
    await one.push();
    await two.pull();
    const rows = await all(two, 'SELECT i, r, b, n, t FROM v ORDER BY id');
    for (const [at, [i, r, b, n, t]] of rows.entries()) {
        assert.deepEqual([i, r, n], [INTEGERS[at], FLOATS[at], null]);
        assert.deepEqual(bytes(b), [...BLOBS[at % 2]]);
        assert.ok(t === (at ? '' : text));
    }
    assert.deepEqual((await plainRows(url, 'SELECT i FROM v ORDER BY id')).flat(), INTEGERS.map(String));
});

await check('AUTOINCREMENT, cascades and 10,000 rows from the service', async (one, two, url) => {
    await plainRows(url, 'CREATE TABLE p(id INTEGER PRIMARY KEY AUTOINCREMENT, v TEXT)');
    await plainRows(url, 'CREATE TABLE k(p INT REFERENCES p(id) ON DELETE CASCADE)');
    for (let at = 0; at < 10_000; at += 1000) {
        await plainRows(url, `INSERT INTO p(v) VALUES ${Array.from({ length: 1000 }, (_, n) => `('row ${at + n}')`)}`);
    }
    await plainRows(url, 'INSERT INTO k SELECT id FROM p WHERE id <= 3');
    await one.pull();
    assert.equal((await all(one, 'SELECT * FROM p')).length, 10_000);
    await plainRows(url, 'DELETE FROM p WHERE id IN (1, 10000)');
    await one.pull();
    assert.deepEqual(plain(await all(one, 'SELECT p FROM k')), [[2], [3]]);
    await one.exec("INSERT INTO p(v) VALUES ('new')");
    await one.push();
    assert.deepEqual(await plainRows(url, "SELECT id FROM p WHERE v = 'new'"), [['10001']]);
    await two.pull();
    assert.deepEqual(plain(await all(two, 'SELECT max(id), count(*) FROM p')), [[10_001, 9_999]]);
});

await check('errors, and a transaction that is rolled back', async (one, two) => {
    await one.exec('CREATE TABLE t(id INTEGER PRIMARY KEY)');
    await one.exec('INSERT INTO t VALUES (1)');
    assert.match((await errorOf(() => one.exec('INSERT INTO t VALUES (1)'))).message, /UNIQUE/);
    await one.exec('BEGIN');
    await one.exec('INSERT INTO t VALUES (2)');
    await one.exec('ROLLBACK');
    await one.push();
    await two.pull();
    assert.deepEqual(plain(await all(two, 'SELECT id FROM t')), [[1]]);
});

// npm's libsql, with the synchronous interface of better-sqlite3: against a remote database, and with replicas.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { Checks, createLog, errorOf, load, plainRows } from './checks.mjs';
import { SQL_CHECKS, plain, sqlChecks } from './common.mjs';

const libsql = await load('libsql');
const Database = libsql.default ?? libsql;
const checks = new Checks('libsql (npm)', 'libsql', SQL_CHECKS - 2 + 4);

const driver = (database) => ({
    rows: async (sql, args) => database.prepare(sql).safeIntegers(true).raw().all(args ?? []),
    run: async (sql, args) => database.prepare(sql).run(args ?? []),
    async begin() {
        database.exec('BEGIN IMMEDIATE');
        const end = (sql) => async () => database.exec(sql);
        return { ...driver(database), commit: end('COMMIT'), rollback: end('ROLLBACK') };
    },
    code: (error) => error.code,
    close: async () => database.close(),
});

// One thread that waits in a call: a second transaction would wait for the first for ever.
await sqlChecks(checks, async (url) => driver(new Database(url)), { batch: false, blocks: true });

await checks.check('transaction() commits, and rolls back when its function fails', async (url) => {
    const database = new Database(url);
    database.exec("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t(v) VALUES ('a')");
    const add = database.transaction((v) => {
        database.prepare('INSERT INTO t(v) VALUES (?)').run(v);
        if (v === 'c') throw new Error('not this one');
    });
    add('b');
    assert.throws(() => add('c'), /not this one/);
    assert.deepEqual(database.prepare('SELECT v FROM t').raw().all(), [['a'], ['b']]);
    assert.equal(database.inTransaction, false);
    const statement = database.prepare('SELECT id, v FROM t WHERE v = ?');
    assert.equal(statement.reader, true);
    assert.equal(statement.get('b').id, 2);
    const made = database.prepare("INSERT INTO t(v) VALUES ('d')").run();
    assert.deepEqual([made.changes, made.lastInsertRowid], [1, 3]);
    database.close();
});

await checks.check('named arguments', async (url) => {
    const database = new Database(url);
    assert.equal(database.prepare('SELECT :v AS v').get({ v: 'a' }).v, 'a');
    database.close();
});

await checks.check('a replica that writes to the service', async (url, home) => {
    const database = new Database(join(home, 'replica.db'), { syncUrl: url.replace(/\/$/, '') });
    database.sync();
    database.exec('CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)');
    database.prepare('INSERT INTO t(v) VALUES (?)').run('from the replica');
    assert.deepEqual(await plainRows(url, 'SELECT v FROM t'), [['from the replica']]);
    await plainRows(url, "INSERT INTO t(v) VALUES ('from elsewhere')");
    database.sync();
    assert.equal(database.prepare('SELECT v FROM t').all().length, 2);
    database.close();
});

await checks.check('replicas that write offline meet', async (url, home) => {
    const options = { syncUrl: url.replace(/\/$/, ''), offline: true };
    const one = new Database(join(home, 'one.db'), options);
    one.exec('CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)');
    one.prepare('INSERT INTO t(v) VALUES (?)').run('one');
    one.sync();
    const two = new Database(join(home, 'two.db'), options);
    two.sync();
    assert.deepEqual(two.prepare('SELECT v FROM t').raw().all(), [['one']]);
    two.exec("INSERT INTO t(v) VALUES ('two')");
    two.sync();
    one.sync();
    assert.deepEqual(one.prepare('SELECT v FROM t ORDER BY id').raw().all(), [['one'], ['two']]);
    assert.deepEqual(await plainRows(url, 'SELECT v FROM t ORDER BY id'), [['one'], ['two']]);
    assert.deepEqual(one.prepare('PRAGMA integrity_check').raw().all(), [['ok']]);
    one.close();
    two.close();
});

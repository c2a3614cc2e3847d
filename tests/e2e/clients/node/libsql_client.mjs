// @libsql/client over HTTP, and with a file of its own that is synced.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { Checks, errorOf, load, plainRows } from './checks.mjs';
import { SQL_CHECKS, plain, sqlChecks } from './common.mjs';

const { createClient } = await load('@libsql/client');
const checks = new Checks('@libsql/client', '@libsql/client', SQL_CHECKS + 6);

const statement = ([sql, args]) => ({ sql, args: args ?? [] });
const arrays = (result) => result.rows.map((row) => Array.from(row));

function driver(client) {
    const on = (target) => ({
        rows: async (sql, args) => arrays(await target.execute(statement([sql, args]))),
        run: (sql, args) => target.execute(statement([sql, args])),
    });
    return {
        ...on(client),
        batch: (statements) => client.batch(statements.map(statement), 'write'),
        async begin() {
            const transaction = await client.transaction('write');
            return { ...on(transaction), commit: () => transaction.commit(), rollback: () => transaction.rollback() };
        },
        code: (error) => error.code,
        close: () => client.close(),
    };
}

await sqlChecks(checks, async (url) => driver(createClient({ url, intMode: 'bigint' })));

await checks.check('executeMultiple and migrate', async (url) => {
    const client = createClient({ url });
    await client.executeMultiple("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t(v) VALUES ('a;b'); -- end");
    // As a tool that makes a table again in order to change it: rows that point to it must outlive that.
    await client.executeMultiple('CREATE TABLE k(t INT REFERENCES t(id) ON DELETE CASCADE); INSERT INTO k VALUES (1)');
    await client.migrate([
        'CREATE TABLE t2(id INTEGER PRIMARY KEY, v TEXT NOT NULL)',
        'INSERT INTO t2 SELECT * FROM t',
        'DROP TABLE t',
        'ALTER TABLE t2 RENAME TO t',
    ]);
    assert.deepEqual(plain(arrays(await client.execute('SELECT k.t, v FROM k JOIN t ON t.id = k.t'))), [[1, 'a;b']]);
    await errorOf(() => client.execute('INSERT INTO k VALUES (7)'));
    client.close();
});

await checks.check('named arguments, changes and row ids', async (url) => {
    const client = createClient({ url });
    await client.execute('CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)');
    const made = await client.execute({ sql: 'INSERT INTO t(v) VALUES (:v), ($w), (@x)', args: { v: 'a', w: 'b', x: 'c' } });
    assert.equal(made.rowsAffected, 3);
    assert.equal(made.lastInsertRowid, 3n);
    const found = await client.execute({ sql: 'UPDATE t SET v = ? WHERE id > ? RETURNING id AS key', args: ['z', 1] });
    assert.deepEqual(found.columns, ['key']);
    assert.deepEqual(found.rows.map((row) => row.key), [2, 3]);
    client.close();
});

await checks.check('a read transaction keeps its state, and takes no writes', async (url) => {
    const client = createClient({ url });
    await client.batch(['CREATE TABLE t(v)', 'INSERT INTO t VALUES (1)'], 'write');
    const reader = await client.transaction('read');
    assert.equal((await reader.execute('SELECT count(*) AS n FROM t')).rows[0].n, 1);
    await client.execute('INSERT INTO t VALUES (2)');
    assert.equal((await reader.execute('SELECT count(*) AS n FROM t')).rows[0].n, 1);
    await errorOf(() => reader.execute('INSERT INTO t VALUES (3)'));
    await reader.rollback();
    assert.equal((await client.execute('SELECT count(*) AS n FROM t')).rows[0].n, 2);
    client.close();
});

await checks.check('two tables with columns of one name', async (url) => {
    const client = createClient({ url });
    await client.batch(['CREATE TABLE a(id, v)', 'CREATE TABLE b(id, v)', 'INSERT INTO a VALUES (1, 2)', 'INSERT INTO b VALUES (1, 3)'], 'write');
    const found = await client.execute('SELECT * FROM a JOIN b ON a.id = b.id');
    assert.deepEqual(found.columns, ['id', 'v', 'id', 'v']);
    assert.deepEqual(arrays(found), [[1, 2, 1, 3]]);
    client.close();
});

await checks.check('a replica that writes to the service', async (url, home) => {
    const client = createClient({ url: `file:${join(home, 'replica.db')}`, syncUrl: url });
    await client.sync();
    await client.execute('CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)');
    await client.execute({ sql: 'INSERT INTO t(v) VALUES (?)', args: ['from the replica'] });
    assert.deepEqual(await plainRows(url, 'SELECT v FROM t'), [['from the replica']]);
    await plainRows(url, "INSERT INTO t(v) VALUES ('from elsewhere')");
    await client.sync();
    assert.equal((await client.execute('SELECT v FROM t')).rows.length, 2);
    client.close();
});

await checks.check('a replica that writes offline', async (url, home) => {
    const client = createClient({ url: `file:${join(home, 'replica.db')}`, syncUrl: url, offline: true });
    await client.execute('CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)');
    await client.execute("INSERT INTO t(v) VALUES ('offline')");
    await client.sync();
    assert.deepEqual(await plainRows(url, 'SELECT v FROM t'), [['offline']]);
    client.close();
});

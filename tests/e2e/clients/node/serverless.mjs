// @tursodatabase/serverless, and the interface of @libsql/client that it has as well.

import assert from 'node:assert/strict';
import { Checks, errorOf, load } from './checks.mjs';
import { SQL_CHECKS, plain, sqlChecks } from './common.mjs';

const { connect } = await load('@tursodatabase/serverless');
const { createClient } = await load('@tursodatabase/serverless/compat');
const PACKAGE = '@tursodatabase/serverless';

const checks = new Checks(PACKAGE, PACKAGE, SQL_CHECKS + 3);

const on = (connection) => ({
    async rows(sql, args) {
        const statement = await connection.prepare(sql);
        return statement.raw().safeIntegers(true).all(args ?? []);
    },
    run: (sql, args) => connection.run(sql, args ?? []),
});

await sqlChecks(checks, async (url) => {
    const connection = connect({ url });
    return {
        ...on(connection),
        batch: (statements) => connection.batch(statements.map(([sql, args]) => ({ sql, args: args ?? [] })), 'immediate'),
        async begin() {
            const own = connect({ url });
            await own.exec('BEGIN IMMEDIATE');
            const end = (sql) => async () => {
                await own.exec(sql);
                await own.close();
            };
            return { ...on(own), commit: end('COMMIT'), rollback: end('ROLLBACK') };
        },
        code: (error) => error.code,
        close: () => connection.close(),
    };
});

await checks.check('transactionAsync commits, and rolls back when its function fails', async (url) => {
    const connection = connect({ url });
    await connection.exec('CREATE TABLE t(id INTEGER PRIMARY KEY); CREATE TABLE u(id)');
    const add = connection.transactionAsync(async (transaction, id) => {
        await transaction.run('INSERT INTO t VALUES (?)', id);
        await transaction.run('INSERT INTO u VALUES (?)', id);
        if (id === 2) throw new Error('not this one');
    });
    await add.immediate(1);
    assert.equal((await errorOf(() => add.immediate(2))).message, 'not this one');
    await errorOf(() => add(1));
    await add(3);
    assert.deepEqual(plain(await on(connection).rows('SELECT t.id FROM t JOIN u ON t.id = u.id')), [[1], [3]]);
    await connection.close();
});

await checks.check('statements: get, all, iterate, pluck, columns, names', async (url) => {
    const connection = connect({ url });
    await connection.exec("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t(v) VALUES ('a'), ('b'), ('c')");
    const statement = await connection.prepare('SELECT id, v FROM t WHERE id >= ? ORDER BY id');
    assert.equal(statement.reader, true);
    assert.deepEqual(statement.columns().map((column) => [column.name, column.type]), [['id', 'INTEGER'], ['v', 'TEXT']]);
    assert.equal((await statement.get([2])).v, 'b');
    assert.equal((await statement.all([2])).length, 2);
    const seen = [];
    for await (const row of statement.iterate([1])) seen.push(row.v);
    assert.deepEqual(seen, ['a', 'b', 'c']);
    assert.deepEqual(await (await connection.prepare('SELECT v FROM t WHERE v > :v')).pluck().all({ v: 'a' }), ['b', 'c']);
    const made = await connection.run("INSERT INTO t(v) VALUES ('d')");
    assert.deepEqual([made.changes, Number(made.lastInsertRowid)], [1, 4]);
    await connection.close();
});

await checks.check('inTransaction and a statement that took too long', async (url) => {
    const connection = connect({ url });
    assert.equal(connection.inTransaction, false);
    await connection.exec('BEGIN');
    assert.equal(connection.inTransaction, true);
    await connection.exec('ROLLBACK');
    assert.equal(connection.inTransaction, false);
    const endless = 'WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n) SELECT count(*) FROM n';
    assert.equal((await errorOf(() => connection.all(endless, { queryTimeout: 300 }))).code, 'TIMEOUT');
    assert.deepEqual(await connection.all('SELECT 1 AS one'), [{ one: 1 }]);
    await connection.close();
});

const compat = new Checks('@tursodatabase/serverless/compat', PACKAGE, SQL_CHECKS);
const statement = ([sql, args]) => ({ sql, args: args ?? [] });
const compatOn = (target) => ({
    rows: async (sql, args) => (await target.execute(statement([sql, args]))).rows.map((row) => Array.from(row)),
    run: (sql, args) => target.execute(statement([sql, args])),
});

await sqlChecks(compat, async (url) => {
    const client = createClient({ url });
    return {
        ...compatOn(client),
        batch: (statements) => client.batch(statements.map(statement), 'write'),
        async begin() {
            const transaction = await client.transaction('write');
            return { ...compatOn(transaction), commit: () => transaction.commit(), rollback: () => transaction.rollback() };
        },
        code: (error) => error.code,
        close: () => client.close(),
    };
});

// @libsql/hrana-client over HTTP, versions 2 and 3 of the protocol. Of version 3 it knows Protobuf only, looks whether the
// server has that, and takes version 2 where it has not.

import assert from 'node:assert/strict';
import { Checks, errorOf, load } from './checks.mjs';
import { SQL_CHECKS, plain, sqlChecks } from './common.mjs';

const hrana = await load('@libsql/hrana-client');

const statement = (sql, args) => (args?.length ? [sql, args.map((arg) => arg)] : sql);

for (const version of [2, 3]) {
    const checks = new Checks(`hrana-client, protocol ${version}`, '@libsql/hrana-client', SQL_CHECKS + version + 1);
    const connect = async (url) => {
        const client = hrana.openHttp(url, undefined, undefined, undefined, version);
        client.intMode = 'bigint';
        await client.getVersion();
        return client;
    };
    const on = (stream) => ({
        rows: async (sql, args) => (await stream.query(statement(sql, args))).rows.map((row) => Array.from(row)),
        run: (sql, args) => stream.run(statement(sql, args)),
    });

    await sqlChecks(checks, async (url) => {
        const client = await connect(url);
        const stream = client.openStream();
        return {
            ...on(stream),
            async batch(statements) {
                const own = client.openStream();
                const batch = own.batch(false);
                let last = batch.step();
                const done = [last.run('BEGIN')];
                for (const [sql, args] of statements) {
                    const step = batch.step().condition(hrana.BatchCond.ok(last));
                    done.push(step.run(statement(sql, args)));
                    last = step;
                }
                const commit = batch.step().condition(hrana.BatchCond.ok(last));
                done.push(commit.run('COMMIT'));
                const rollback = batch.step().condition(hrana.BatchCond.not(hrana.BatchCond.ok(commit)));
                done.push(rollback.run('ROLLBACK'));
                const results = Promise.allSettled(done);
                await batch.execute();
                const failed = (await results).find((result) => result.status === 'rejected');
                own.close();
                if (failed) throw failed.reason;
            },
            async begin() {
                const own = client.openStream();
                await own.run('BEGIN IMMEDIATE');
                const end = (sql) => async () => {
                    await own.run(sql);
                    own.close();
                };
                return { ...on(own), commit: end('COMMIT'), rollback: end('ROLLBACK') };
            },
            code: (error) => error.code,
            close: () => client.close(),
        };
    });

    await checks.check('describe, sequence and stored SQL', async (url) => {
        const client = await connect(url);
        const stream = client.openStream();
        await stream.sequence("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t(v) VALUES ('a'), ('b')");
        const described = await stream.describe('SELECT id, v AS w FROM t WHERE id = :id AND v <> ?2');
        assert.deepEqual(described.paramNames.length, 2);
        assert.deepEqual(described.columns.map((column) => column.name), ['id', 'w']);
        assert.equal(described.isReadonly, true);
        assert.equal((await stream.describe('DELETE FROM t')).isReadonly, false);
        const sql = stream.storeSql('SELECT v FROM t WHERE id = ?');
        assert.deepEqual([(await stream.queryValue([sql, [1]])).value, (await stream.queryValue([sql, [2]])).value], ['a', 'b']);
        sql.close();
        client.close();
    });

    await checks.check('queryRow, queryValue and counters', async (url) => {
        const client = await connect(url);
        const stream = client.openStream();
        await stream.run('CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)');
        const made = await stream.run("INSERT INTO t(v) VALUES ('a'), ('b')");
        assert.equal(made.affectedRowCount, 2);
        assert.equal(made.lastInsertRowid, 2n);
        const row = (await stream.queryRow('SELECT id, v FROM t WHERE id = 2')).row;
        assert.deepEqual([row.id, row.v], [2n, 'b']);
        assert.equal((await stream.queryRow('SELECT 1 WHERE 0')).row, undefined);
        client.close();
    });

    await checks.check('a stream that is closed has rolled back', async (url) => {
        const client = await connect(url);
        const stream = client.openStream();
        await stream.run('CREATE TABLE t(v)');
        await stream.run('BEGIN');
        await stream.run('INSERT INTO t VALUES (1)');
        stream.closeGracefully();
        const other = client.openStream();
        await other.run('INSERT INTO t VALUES (2)');
        assert.deepEqual(plain(await on(other).rows('SELECT v FROM t')), [[2]]);
        await errorOf(() => stream.run('SELECT 1'));
        client.close();
    });

    if (version < 3) continue;
    await checks.check('getAutocommit and cursors', async (url) => {
        const client = await connect(url);
        assert.equal(await client.getVersion(), 3);
        const stream = client.openStream();
        await stream.run('BEGIN');
        assert.equal(await stream.getAutocommit(), false);
        await stream.run('ROLLBACK');
        const batch = stream.batch(true);
        const value = batch.step().queryValue('SELECT 1');
        await batch.execute();
        assert.equal((await value).value, 1n);
        client.close();
    });
}

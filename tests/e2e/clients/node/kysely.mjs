// kysely with the dialect for libSQL, which brings an older @libsql/client.

import assert from 'node:assert/strict';
import { Checks, errorOf, load } from './checks.mjs';
import { FLOATS, bytes } from './common.mjs';

const { Kysely, sql } = await load('kysely');
const { Migrator } = await load('kysely/migration');
const { LibsqlDialect } = await load('@libsql/kysely-libsql');

const checks = new Checks('kysely (libsql dialect)', '@libsql/kysely-libsql', 6);
const connect = (url) => new Kysely({ dialect: new LibsqlDialect({ url }) });

const provider = {
    getMigrations: async () => ({
        '1-tables': {
            up: async (db) => {
                await db.schema.createTable('person')
                    .addColumn('id', 'integer', (column) => column.primaryKey().autoIncrement())
                    .addColumn('name', 'text', (column) => column.notNull().unique())
                    .addColumn('score', 'real')
                    .addColumn('photo', 'blob')
                    .execute();
                await db.schema.createTable('pet')
                    .addColumn('name', 'text')
                    .addColumn('owner', 'integer', (column) => column.references('person.id').onDelete('cascade'))
                    .execute();
                await db.schema.createIndex('pet_owner').on('pet').column('owner').execute();
            },
            down: async (db) => {
                await db.schema.dropTable('pet').execute();
                await db.schema.dropTable('person').execute();
            },
        },
        '2-column': {
            up: (db) => db.schema.alterTable('pet').addColumn('kind', 'text', (column) => column.defaultTo('cat')).execute(),
            down: (db) => db.schema.alterTable('pet').dropColumn('kind').execute(),
        },
    }),
};

async function migrated({ error, results }) {
    if (error) throw error;
    return results.filter((result) => result.status === 'Success').length;
}

const check = (name, body) =>
    checks.check(name, async (url) => {
        const db = connect(url);
        assert.equal(await migrated(await new Migrator({ db, provider }).migrateToLatest()), 2);
        await body(db, url);
        await db.destroy();
    });

await check('migrations up, again, down and up', async (db) => {
    const migrator = new Migrator({ db, provider });
    assert.equal(await migrated(await migrator.migrateToLatest()), 0);
    assert.equal(await migrated(await migrator.migrateDown()), 1);
    assert.equal(await migrated(await migrator.migrateToLatest()), 1);
});

await check('introspection', async (db) => {
    const tables = await db.introspection.getTables();
    assert.deepEqual(tables.map((table) => table.name), ['person', 'pet']);
    const id = tables[0].columns.find((column) => column.name === 'id');
    assert.equal(id.isAutoIncrementing, true);
    const kind = tables[1].columns.find((column) => column.name === 'kind');
    assert.deepEqual([kind.dataType.toLowerCase(), kind.isNullable, kind.hasDefaultValue], ['text', true, true]);
});

await check('insert, upsert, update, delete, join', async (db) => {
    const photo = Uint8Array.from({ length: 256 }, (_, byte) => byte);
    const made = await db.insertInto('person').values({ name: 'a', score: 0.1, photo }).returningAll().executeTakeFirst();
    assert.equal(made.id, 1);
    assert.deepEqual(bytes(made.photo), [...photo]);
    await db.insertInto('person').values({ name: 'a' }).onConflict((on) => on.column('name').doUpdateSet({ score: 5 })).execute();
    assert.equal((await db.insertInto('person').values({ id: 2, name: 'b', score: null }).executeTakeFirst()).insertId, 2n);
    await db.insertInto('pet').values([{ name: 'x', owner: 1 }, { name: 'y', owner: 1 }]).execute();
    const joined = await db.selectFrom('person').leftJoin('pet', 'pet.owner', 'person.id').select(['person.name', 'pet.name as pet', 'kind']).orderBy('person.id').orderBy('pet').execute();
    assert.deepEqual(joined.map((row) => [row.name, row.pet, row.kind]), [['a', 'x', 'cat'], ['a', 'y', 'cat'], ['b', null, null]]);
    assert.equal((await db.updateTable('person').set((eb) => ({ score: eb('score', '+', 1) })).where('id', '=', 1).executeTakeFirst()).numUpdatedRows, 1n);
    await db.deleteFrom('person').where('id', '=', 1).execute();
    assert.equal((await db.selectFrom('pet').selectAll().execute()).length, 0);
    for (const value of FLOATS) {
        const { rows } = await sql`SELECT ${value} AS v`.execute(db);
        assert.equal(rows[0].v, value);
    }
});

await check('errors', async (db) => {
    await db.insertInto('person').values({ name: 'a' }).execute();
    assert.match((await errorOf(() => db.insertInto('person').values({ name: 'a' }).execute())).code, /^SQLITE_CONSTRAINT/);
    assert.match((await errorOf(() => db.insertInto('pet').values({ owner: 7 }).execute())).code, /^SQLITE_CONSTRAINT/);
    assert.equal((await errorOf(() => db.selectFrom('nowhere').selectAll().execute())).code, 'SQLITE_ERROR');
});

await check('transactions commit and roll back, of two clients', async (db, url) => {
    const other = connect(url);
    await db.transaction().execute((trx) => trx.insertInto('person').values({ name: 'a', score: 0 }).execute());
    await errorOf(() => db.transaction().execute(async (trx) => {
        await trx.insertInto('person').values({ name: 'b' }).execute();
        throw new Error('not this');
    }));
    const add = async (client) => {
        for (let n = 0; n < 10; n++) {
            await client.transaction().execute(async (trx) => {
                const { score } = await trx.selectFrom('person').select('score').executeTakeFirst();
                await trx.updateTable('person').set({ score: score + 1 }).execute();
            });
        }
    };
    await Promise.all([add(db), add(other)]);
    assert.deepEqual(await other.selectFrom('person').select(['name', 'score']).execute(), [{ name: 'a', score: 20 }]);
    await other.destroy();
});

await check('10,000 rows', async (db) => {
    for (let at = 0; at < 10_000; at += 1000) {
        await db.insertInto('pet').values(Array.from({ length: 1000 }, (_, n) => ({ name: `pet ${at + n}` }))).execute();
    }
    const rows = await db.selectFrom('pet').selectAll().orderBy('rowid').execute();
    assert.ok(rows.length === 10_000 && rows.every((row, at) => row.name === `pet ${at}`));
});

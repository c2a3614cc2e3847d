// drizzle-orm over @libsql/client, and drizzle-kit: push twice, push of a changed schema, pull, migrations.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { symlinkSync, writeFileSync, mkdirSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Checks, errorOf, load, PACKAGES, plainRows } from './checks.mjs';
import { FLOATS, INTEGERS, bytes } from './common.mjs';

const { drizzle } = await load('drizzle-orm/libsql');
const { migrate } = await load('drizzle-orm/libsql/migrator');
const { eq, relations, sql, count } = await load('drizzle-orm');
const { sqliteTable, integer, text, real, blob, uniqueIndex } = await load('drizzle-orm/sqlite-core');

const users = sqliteTable('users', {
    id: integer('id').primaryKey({ autoIncrement: true }),
    name: text('name').notNull(),
    email: text('email').unique(),
    active: integer('active', { mode: 'boolean' }).default(true),
    made: integer('made', { mode: 'timestamp_ms' }),
    score: real('score'),
    photo: blob('photo', { mode: 'buffer' }),
    extra: text('extra', { mode: 'json' }),
});
const posts = sqliteTable('posts', {
    id: integer('id').primaryKey(),
    user: integer('user_id').references(() => users.id, { onDelete: 'cascade' }),
    title: text('title'),
}, (table) => [uniqueIndex('posts_title').on(table.user, table.title)]);
const schema = {
    users,
    posts,
    usersRelations: relations(users, ({ many }) => ({ posts: many(posts) })),
    postsRelations: relations(posts, ({ one }) => ({ author: one(users, { fields: [posts.user], references: [users.id] }) })),
};

const DDL = [
    `CREATE TABLE users(id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, name TEXT NOT NULL, email TEXT UNIQUE,
     active INTEGER DEFAULT true, made INTEGER, score REAL, photo BLOB, extra TEXT)`,
    'CREATE TABLE posts(id INTEGER PRIMARY KEY, user_id INTEGER REFERENCES users(id) ON DELETE CASCADE, title TEXT)',
];

const SCHEMA_FILE = (more) => `
import { sqliteTable, integer, text, real, blob, index, uniqueIndex } from 'drizzle-orm/sqlite-core';
export const users = sqliteTable('users', {
    id: integer('id').primaryKey({ autoIncrement: true }),
    name: text('name').notNull(),
    email: text('email').unique(),
    score: real('score').default(0.5),
    photo: blob('photo'),
    ${more}
}, (table) => [index('users_name').on(table.name)]);
export const posts = sqliteTable('posts', {
    id: integer('id').primaryKey(),
    user: integer('user_id').notNull().references(() => users.id, { onDelete: 'cascade' }),
    title: text('title'),
}, (table) => [uniqueIndex('posts_title').on(table.user, table.title)]);
`;

const kit = new Checks('drizzle-kit', 'drizzle-kit', 5);
const orm = new Checks('drizzle-orm', 'drizzle-orm', 8);

/** Make a project of a user in `home`. */
function project(home, url, more = '') {
    symlinkSync(`${PACKAGES}/node_modules`, join(home, 'node_modules'));
    writeFileSync(join(home, 'package.json'), '{"type":"module"}');
    const config = { dialect: 'turso', schema: './schema.ts', out: './out', dbCredentials: { url, authToken: 'none' } };
    writeFileSync(join(home, 'drizzle.config.json'), JSON.stringify(config));
    writeFileSync(join(home, 'schema.ts'), SCHEMA_FILE(more));
}

async function run(home, ...args) {
    const program = join(PACKAGES, 'node_modules/drizzle-kit/bin.cjs');
    const { stdout, stderr } = await promisify(execFile)(process.execPath, [program, ...args, '--config=drizzle.config.json'], { cwd: home });
    if (/error/i.test(stderr + stdout)) throw new Error(`${args}: ${stdout}${stderr}`);
    return stdout;
}

const makes = (sql) => /CREATE|ALTER|DROP/.test(sql);

await kit.check('push makes the schema, and a second one changes nothing', async (url, home) => {
    project(home, url);
    await run(home, 'push', '--force');
    const made = await plainRows(url, 'SELECT type, name, sql FROM sqlite_schema ORDER BY name');
    assert.deepEqual(made.map((row) => row[1]).filter((name) => !name.startsWith('sqlite_')), ['posts', 'posts_title', 'users', 'users_email_unique', 'users_name']);
    const again = await run(home, 'push', '--force', '--verbose');
    assert.ok(!makes(again), again);
    assert.match(again, /No changes detected/i);
    assert.deepEqual(await plainRows(url, 'SELECT type, name, sql FROM sqlite_schema ORDER BY name'), made);
});

await kit.check('push of a changed schema keeps the rows', async (url, home) => {
    project(home, url);
    await run(home, 'push', '--force');
    await plainRows(url, "INSERT INTO users(name) VALUES ('a')");
    await plainRows(url, "INSERT INTO posts VALUES (1, 1, 't')");
    writeFileSync(join(home, 'schema.ts'), SCHEMA_FILE("age: integer('age').default(7),"));
    await run(home, 'push', '--force');
    assert.deepEqual(await plainRows(url, 'SELECT name, age, title FROM users JOIN posts ON user_id = users.id'), [['a', '7', 't']]);
    assert.match(await run(home, 'push', '--force'), /No changes detected/i);
});

await kit.check('push of a column that is NOT NULL from now on', async (url, home) => {
    project(home, url, "age: integer('age').default(7),");
    await run(home, 'push', '--force');
    await plainRows(url, "INSERT INTO users(name) VALUES ('a')");
    writeFileSync(join(home, 'schema.ts'), SCHEMA_FILE("age: integer('age').default(7).notNull(),"));
    await run(home, 'push', '--force');
    assert.deepEqual(await plainRows(url, 'SELECT name, age FROM users'), [['a', '7']]);
    assert.match(await run(home, 'push', '--force'), /No changes detected/i);
});

await kit.check('pull describes what push made', async (url, home) => {
    project(home, url);
    await run(home, 'push', '--force');
    await run(home, 'pull');
    const pulled = readFileSync(join(home, 'out/schema.ts'), 'utf8');
    for (const part of ['sqliteTable("users"', 'autoIncrement: true', 'uniqueIndex("posts_title")', 'onDelete: "cascade"', 'real().default(0.5)', 'index("users_name")']) {
        assert.ok(pulled.includes(part), `${part} is not in ${pulled}`);
    }
});

await kit.check('generate and migrate, twice', async (url, home) => {
    project(home, url);
    await run(home, 'generate');
    await run(home, 'migrate');
    await run(home, 'migrate');
    writeFileSync(join(home, 'schema.ts'), SCHEMA_FILE("age: integer('age'),"));
    await run(home, 'generate');
    await run(home, 'migrate');
    assert.equal((await plainRows(url, 'SELECT * FROM __drizzle_migrations')).length, 2);
    assert.deepEqual(await plainRows(url, "SELECT count(*) FROM pragma_table_info('users')"), [['6']]);
});

const check = (name, body) =>
    orm.check(name, async (url, home) => {
        for (const statement of DDL) await plainRows(url, statement);
        const db = drizzle({ connection: { url }, schema });
        await body(db, url, home);
        db.$client.close();
    });

await check('rows of every kind', async (db) => {
    const made = new Date(1_700_000_000_123);
    const photo = Buffer.from([...Array(256).keys()]);
    for (const score of FLOATS) {
        await db.insert(users).values({ name: 'a', active: false, made, score, photo, extra: { list: [1, 'ü', null] } });
    }
    const rows = await db.select().from(users).orderBy(users.id);
    assert.deepEqual(rows.map((row) => row.score), FLOATS);
    assert.deepEqual(rows[0].made, made);
    assert.equal(rows[0].active, false);
    assert.deepEqual(bytes(rows[0].photo), [...photo]);
    assert.deepEqual(rows[0].extra, { list: [1, 'ü', null] });
    assert.equal(rows[0].email, null);
    for (const value of INTEGERS) {
        const { text } = await db.get(sql`SELECT CAST(CAST(${String(value)} AS INTEGER) AS TEXT) AS text`);
        assert.equal(text, String(value));
    }
});

await check('insert returning, upsert, update, delete', async (db) => {
    const [{ id }] = await db.insert(users).values({ name: 'a', email: 'a@x' }).returning({ id: users.id });
    assert.equal(id, 1);
    await db.insert(users).values({ name: 'b', email: 'a@x' }).onConflictDoUpdate({ target: users.email, set: { name: 'b' } });
    await db.insert(users).values({ name: 'c', email: 'a@x' }).onConflictDoNothing();
    assert.deepEqual((await db.select().from(users)).map((row) => row.name), ['b']);
    assert.equal((await db.update(users).set({ score: sql`${users.id} + 1` }).where(eq(users.id, 1))).rowsAffected, 1);
    assert.equal((await db.delete(users).where(eq(users.id, 1)).returning()).at(0).score, 2);
});

await check('relational queries and joins', async (db) => {
    await db.insert(users).values([{ name: 'a' }, { name: 'b' }]);
    await db.insert(posts).values([{ user: 1, title: 'x' }, { user: 1, title: 'y' }, { user: 2, title: 'z' }]);
    const found = await db.query.users.findMany({ with: { posts: { orderBy: posts.title } }, orderBy: users.id });
    assert.deepEqual(found.map((user) => user.posts.map((post) => post.title)), [['x', 'y'], ['z']]);
    assert.equal((await db.query.posts.findFirst({ with: { author: true }, where: eq(posts.title, 'z') })).author.name, 'b');
    const counted = await db.select({ name: users.name, n: count(posts.id) }).from(users).leftJoin(posts, eq(posts.user, users.id)).groupBy(users.id);
    assert.deepEqual(counted, [{ name: 'a', n: 2 }, { name: 'b', n: 1 }]);
});

await check('foreign keys cascade, and errors have a code', async (db) => {
    await db.insert(users).values({ name: 'a', email: 'a@x' });
    await db.insert(posts).values([{ user: 1, title: 'x' }]);
    const codeOf = async (query) => {
        const error = await errorOf(() => query);
        return error.code ?? error.cause?.code;
    };
    assert.match(await codeOf(db.insert(posts).values({ user: 9 })), /^SQLITE_CONSTRAINT/);
    assert.match(await codeOf(db.insert(users).values({ name: 'b', email: 'a@x' })), /^SQLITE_CONSTRAINT/);
    await db.delete(users);
    assert.equal(await db.$count(posts), 0);
});

await check('transactions commit, roll back, and nest', async (db) => {
    await db.transaction(async (tx) => {
        await tx.insert(users).values({ name: 'a' });
        await errorOf(() => tx.transaction(async (inner) => {
            await inner.insert(users).values({ name: 'b' });
            inner.rollback();
        }));
        await tx.transaction((inner) => inner.insert(users).values({ name: 'c' }));
    });
    await errorOf(() => db.transaction(async (tx) => {
        await tx.insert(users).values({ name: 'd' });
        tx.rollback();
    }));
    assert.deepEqual((await db.select().from(users)).map((row) => row.name), ['a', 'c']);
});

await check('batch is whole or not there', async (db) => {
    const results = await db.batch([db.insert(users).values({ name: 'a', email: 'e' }).returning(), db.select().from(users)]);
    assert.equal(results[1].length, 1);
    await errorOf(() => db.batch([db.insert(users).values({ name: 'b' }), db.insert(users).values({ name: 'c', email: 'e' })]));
    assert.equal(await db.$count(users), 1);
});

await check('10,000 rows, by two clients at once', async (db, url) => {
    const other = drizzle({ connection: { url }, schema });
    const add = async (target, from) => {
        for (let at = 0; at < 5000; at += 500) {
            await target.insert(posts).values(Array.from({ length: 500 }, (_, n) => ({ id: from + at + n, title: `post ${from + at + n}` })));
        }
    };
    await Promise.all([add(db, 0), add(other, 5000)]);
    const rows = await other.select().from(posts).orderBy(posts.id);
    assert.equal(rows.length, 10_000);
    assert.ok(rows.every((row, at) => row.id === at && row.title === `post ${at}`));
    other.$client.close();
});

await check('the migrator runs each migration once', async (db, url, home) => {
    project(home, url);
    const folder = join(home, 'migrations');
    mkdirSync(join(folder, 'meta'), { recursive: true });
    const entries = [{ idx: 0, version: '6', when: 1, tag: '0000_first', breakpoints: true }];
    writeFileSync(join(folder, 'meta/_journal.json'), JSON.stringify({ version: '7', dialect: 'sqlite', entries }));
    writeFileSync(join(folder, '0000_first.sql'), 'CREATE TABLE m(a);\n--> statement-breakpoint\nINSERT INTO m VALUES (1);');
    await migrate(db, { migrationsFolder: folder });
    await migrate(db, { migrationsFolder: folder });
    assert.deepEqual(await plainRows(url, 'SELECT a FROM m'), [['1']]);
    assert.ok(readdirSync(folder).includes('meta'));
});

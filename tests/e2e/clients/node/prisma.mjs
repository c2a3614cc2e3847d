// Prisma 7 with its libSQL adapter. `prisma generate` runs here; `prisma db push` and `migrate` need an engine that npm does
// not have, and take no libSQL URL: the schema is made as their SQL has it.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Checks, errorOf, load, PACKAGES, plainRows } from './checks.mjs';
import { INTEGERS } from './common.mjs';

// Prisma refuses those that are near the largest there is.
const FLOATS = [0.1, -1.5, 1 / 3, 1e100, 1e-100, 0];

const SCHEMA = `
generator client {
  provider = "prisma-client"
  output   = "./client"
}
datasource db {
  provider = "sqlite"
}
model User {
  id    Int      @id @default(autoincrement())
  name  String
  email String?  @unique
  score Float?
  big   BigInt?
  photo Bytes?
  made  DateTime @default(now())
  extra Json?
  price Decimal?
  on    Boolean  @default(true)
  posts Post[]
}
model Post {
  id       Int    @id @default(autoincrement())
  title    String
  author   User?  @relation(fields: [authorId], references: [id], onDelete: Cascade)
  authorId Int?
  tags     Tag[]
}
model Tag {
  name  String @id
  posts Post[]
}
`;

const DDL = [
    `CREATE TABLE "User" ("id" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, "name" TEXT NOT NULL, "email" TEXT, "score" REAL,
     "big" BIGINT, "photo" BLOB, "made" DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP, "extra" JSONB, "price" DECIMAL,
     "on" BOOLEAN NOT NULL DEFAULT true)`,
    `CREATE TABLE "Post" ("id" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, "title" TEXT NOT NULL, "authorId" INTEGER,
     CONSTRAINT "Post_authorId_fkey" FOREIGN KEY ("authorId") REFERENCES "User" ("id") ON DELETE CASCADE ON UPDATE CASCADE)`,
    'CREATE TABLE "Tag" ("name" TEXT NOT NULL PRIMARY KEY)',
    `CREATE TABLE "_PostToTag" ("A" INTEGER NOT NULL, "B" TEXT NOT NULL,
     CONSTRAINT "_PostToTag_A_fkey" FOREIGN KEY ("A") REFERENCES "Post" ("id") ON DELETE CASCADE ON UPDATE CASCADE,
     CONSTRAINT "_PostToTag_B_fkey" FOREIGN KEY ("B") REFERENCES "Tag" ("name") ON DELETE CASCADE ON UPDATE CASCADE)`,
    'CREATE UNIQUE INDEX "User_email_key" ON "User"("email")',
    'CREATE UNIQUE INDEX "_PostToTag_AB_unique" ON "_PostToTag"("A", "B")',
    'CREATE INDEX "_PostToTag_B_index" ON "_PostToTag"("B")',
];

const home = mkdtempSync(join(tmpdir(), 'logmirror-prisma-'));
process.on('exit', () => rmSync(home, { recursive: true, force: true }));
symlinkSync(`${PACKAGES}/node_modules`, join(home, 'node_modules'));
writeFileSync(join(home, 'package.json'), '{"type":"module"}');
writeFileSync(join(home, 'schema.prisma'), SCHEMA);
// It looks for the engine before anything else, and uses none to generate: any program will do.
const env = { ...process.env, PRISMA_SCHEMA_ENGINE_BINARY: process.execPath, CHECKPOINT_DISABLE: '1', PRISMA_HIDE_UPDATE_MESSAGE: '1' };
execFileSync(process.execPath, [join(PACKAGES, 'node_modules/prisma/build/index.js'), 'generate'], { cwd: home, env });
const { PrismaClient, Prisma } = await import(join(home, 'client/client.ts'));
const { PrismaLibSql } = await load('@prisma/adapter-libsql');

const checks = new Checks('prisma (adapter-libsql)', '@prisma/adapter-libsql', 7);
const connect = (url) => new PrismaClient({ adapter: new PrismaLibSql({ url, intMode: 'bigint' }) });

const check = (name, body) =>
    checks.check(name, async (url) => {
        for (const statement of DDL) await plainRows(url, statement);
        const db = connect(url);
        await body(db, url);
        await db.$disconnect();
    });

await check('rows of every kind', async (db) => {
    const photo = Uint8Array.from({ length: 256 }, (_, byte) => byte);
    for (const [at, big] of INTEGERS.entries()) {
        const price = new Prisma.Decimal('12.50');
        await db.user.create({ data: { name: `ü€😀${at}`, big, score: FLOATS[at], photo, extra: { list: [1, 'ü', null] }, price, on: false } });
    }
    const rows = await db.user.findMany({ orderBy: { id: 'asc' } });
    assert.deepEqual(rows.map((row) => row.big), INTEGERS);
    assert.deepEqual(rows.map((row) => row.score), FLOATS);
    assert.deepEqual(rows.map((row) => row.name), INTEGERS.map((_, at) => `ü€😀${at}`));
    assert.deepEqual([...rows[0].photo], [...photo]);
    assert.deepEqual(rows[0].extra, { list: [1, 'ü', null] });
    assert.equal(rows[0].price.toString(), '12.5');
    assert.equal(rows[0].email, null);
    assert.equal(rows[0].on, false);
    assert.ok(Math.abs(rows[0].made - Date.now()) < 60_000);
    assert.equal(await db.user.count({ where: { made: { gt: new Date(0) }, big: { lt: 0 } } }), 2);
});

await check('create, find, update, upsert, delete', async (db) => {
    const made = await db.user.create({ data: { name: 'a', email: 'a@x' } });
    assert.equal(made.id, 1);
    assert.equal((await db.user.update({ where: { email: 'a@x' }, data: { name: 'b', score: 1 } })).name, 'b');
    assert.equal((await db.user.update({ where: { id: 1 }, data: { score: { increment: 2 } } })).score, 3);
    await db.user.upsert({ where: { email: 'a@x' }, create: { name: 'c' }, update: { name: 'd' } });
    await db.user.upsert({ where: { email: 'e@x' }, create: { name: 'e', email: 'e@x' }, update: {} });
    assert.equal((await db.user.updateMany({ where: { name: { in: ['d', 'e'] } }, data: { on: false } })).count, 2);
    assert.deepEqual((await db.user.createManyAndReturn({ data: [{ name: 'f' }, { name: 'g' }] })).map((user) => user.id), [3, 4]);
    assert.equal((await db.user.delete({ where: { id: 1 } })).name, 'd');
    assert.equal((await db.user.deleteMany({ where: { name: { startsWith: 'f' } } })).count, 1);
    assert.deepEqual((await db.user.findMany({ orderBy: { id: 'desc' }, take: 1, skip: 1 })).map((user) => user.name), ['e']);
    assert.equal((await db.user.aggregate({ _max: { id: true }, _count: true }))._max.id, 4);
    assert.equal((await db.user.groupBy({ by: ['on'], _count: true })).length, 2);
});

await check('relations: nested writes, include, many to many', async (db) => {
    await db.user.create({
        data: {
            name: 'a',
            posts: { create: [{ title: 'x', tags: { create: [{ name: 't' }, { name: 'u' }] } }, { title: 'y', tags: { connectOrCreate: { where: { name: 't' }, create: { name: 't' } } } }] },
        },
    });
    const found = await db.user.findFirst({ include: { posts: { include: { tags: { orderBy: { name: 'asc' } } }, orderBy: { title: 'asc' } }, _count: { select: { posts: true } } } });
    assert.deepEqual(found.posts.map((post) => post.tags.map((tag) => tag.name)), [['t', 'u'], ['t']]);
    assert.equal(found._count.posts, 2);
    await db.post.update({ where: { id: 1 }, data: { tags: { disconnect: { name: 't' } }, author: { disconnect: true } } });
    assert.equal(await db.post.count({ where: { tags: { some: { name: 't' } } } }), 1);
    assert.equal((await db.user.findMany({ where: { posts: { every: { title: 'y' } } } })).length, 1);
    await db.user.delete({ where: { id: 1 } });
    assert.deepEqual((await db.post.findMany()).map((post) => post.title), ['x']);
});

await check('errors have Prisma\'s codes', async (db) => {
    await db.user.create({ data: { name: 'a', email: 'a@x' } });
    const codeOf = async (body) => (await errorOf(body)).code;
    assert.equal(await codeOf(() => db.user.create({ data: { name: 'b', email: 'a@x' } })), 'P2002');
    assert.equal(await codeOf(() => db.post.create({ data: { title: 'x', authorId: 99 } })), 'P2003');
    assert.equal(await codeOf(() => db.user.update({ where: { id: 99 }, data: { name: 'x' } })), 'P2025');
    assert.equal(await codeOf(() => db.$queryRaw`SELECT * FROM nowhere`), 'P2010');
    assert.equal(await db.user.count(), 1);
});

await check('transactions commit and roll back', async (db) => {
    await db.$transaction([db.user.create({ data: { name: 'a', email: 'e' } }), db.user.create({ data: { name: 'b' } })]);
    await errorOf(() => db.$transaction([db.user.create({ data: { name: 'c' } }), db.user.create({ data: { name: 'd', email: 'e' } })]));
    await db.$transaction(async (tx) => {
        const { id } = await tx.user.create({ data: { name: 'f' } });
        await tx.post.create({ data: { title: 'x', authorId: id } });
    });
    await errorOf(() => db.$transaction(async (tx) => {
        await tx.user.deleteMany();
        throw new Error('not this');
    }));
    assert.deepEqual((await db.user.findMany({ orderBy: { id: 'asc' } })).map((user) => user.name), ['a', 'b', 'f']);
});

await check('raw SQL', async (db) => {
    assert.equal(await db.$executeRaw`INSERT INTO "User"("name", "score") VALUES (${'a'}, ${0.5}), (${'b'}, ${null})`, 2);
    const rows = await db.$queryRaw`SELECT "id", "name", "score" FROM "User" WHERE "name" = ${'a'}`;
    assert.deepEqual(rows.map((row) => ({ ...row, id: Number(row.id) })), [{ id: 1, name: 'a', score: 0.5 }]);
});

await check('10,000 rows, and two clients at once', async (db, url) => {
    const other = connect(url);
    const add = async (client, from) => {
        for (let at = 0; at < 5000; at += 1000) {
            await client.tag.createMany({ data: Array.from({ length: 1000 }, (_, n) => ({ name: `tag ${from + at + n}` })) });
        }
    };
    await Promise.all([add(db, 0), add(other, 5000)]);
    const rows = await other.tag.findMany();
    assert.equal(new Set(rows.map((row) => row.name)).size, 10_000);
    await db.user.create({ data: { name: 'n', big: 0n } });
    const count = async (client) => {
        for (let n = 0; n < 10; n++) await client.user.update({ where: { id: 1 }, data: { big: { increment: 1 } } });
    };
    await Promise.all([count(db), count(other)]);
    assert.equal((await db.user.findFirst()).big, 20n);
    await other.$disconnect();
});

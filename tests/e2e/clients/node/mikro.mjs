// MikroORM with its libSQL driver, which is npm's libsql with a remote URL.

import assert from 'node:assert/strict';
import { Checks, errorOf, load, plainRows } from './checks.mjs';

const { MikroORM, defineEntity, p, UniqueConstraintViolationException, ForeignKeyConstraintViolationException, TableNotFoundException } = await load('@mikro-orm/libsql');

const checks = new Checks('MikroORM (libsql)', '@mikro-orm/libsql', 6);

/** Three tables; `more` are columns of the last. */
function entities(more = {}) {
    const Author = defineEntity({
        name: 'Author',
        properties: {
            id: p.integer().primary(),
            name: p.string(),
            email: p.string().unique().nullable(),
            score: p.double().nullable(),
            big: p.bigint().nullable(),
            photo: p.blob().nullable(),
            born: p.datetime().nullable(),
            extra: p.json().nullable(),
            books: () => p.oneToMany(Book).mappedBy('author'),
        },
    });
    const Book = defineEntity({
        name: 'Book',
        properties: {
            id: p.integer().primary(),
            title: p.string(),
            author: () => p.manyToOne(Author).deleteRule('cascade').nullable(),
            tags: () => p.manyToMany(Tag).owner(),
        },
    });
    const Tag = defineEntity({ name: 'Tag', properties: { name: p.string().primary(), ...more } });
    return [Author, Book, Tag];
}

const [Author, Book, Tag] = entities();

// A remote URL without its slash: the client puts what it needs after it.
const connect = (url, made = [Author, Book, Tag]) => MikroORM.init({ dbName: url.replace(/\/$/, ''), entities: made });

const check = (name, body) =>
    checks.check(name, async (url) => {
        const orm = await connect(url);
        try {
            await orm.schema.update();
            await body(orm, url);
        } finally {
            await orm.close(true);
        }
    });

await check('the schema, updated twice and changed', async (orm, url) => {
    assert.equal(await orm.schema.getUpdateSchemaSQL(), '');
    await orm.schema.update();
    await plainRows(url, "INSERT INTO tag VALUES ('t')");
    const changed = await connect(url, entities({ color: p.string().default('red'), note: p.text().nullable() }));
    await changed.schema.update();
    assert.equal(await changed.schema.getUpdateSchemaSQL(), '');
    assert.deepEqual(await plainRows(url, 'SELECT name, color, note FROM tag'), [['t', 'red', null]]);
    await changed.close(true);
    await orm.schema.drop();
    await orm.schema.create();
    assert.deepEqual(await plainRows(url, 'SELECT * FROM tag'), []);
});

await check('rows of every kind', async (orm) => {
    const photo = Buffer.from([...Array(256).keys()]);
    const born = new Date(1_700_000_000_123);
    orm.em.fork().create(Author, { name: 'x' });
    const em = orm.em.fork();
    em.create(Author, { name: 'ü€😀', score: 0.1, big: 2n ** 53n - 1n, photo, born, extra: { list: [1, 'ü', null] } });
    em.create(Author, { name: '', score: Number.MAX_VALUE });
    await em.flush();
    const [one, two] = await orm.em.fork().findAll(Author, { orderBy: { id: 1 } });
    assert.deepEqual([one.name, one.score, BigInt(one.big)], ['ü€😀', 0.1, 2n ** 53n - 1n]);
    assert.deepEqual([...one.photo], [...photo]);
    assert.deepEqual(one.born, born);
    assert.deepEqual(one.extra, { list: [1, 'ü', null] });
    assert.deepEqual([two.name, two.score, two.photo], ['', Number.MAX_VALUE, null]);
});

await check('relations, and cascades of the database', async (orm) => {
    const em = orm.em.fork();
    const tag = em.create(Tag, { name: 't' });
    const author = em.create(Author, { name: 'a' });
    for (const title of ['x', 'y']) em.create(Book, { title, author, tags: [tag] });
    await em.flush();
    const found = await orm.em.fork().findOneOrFail(Author, { books: { tags: { name: 't' } } }, { populate: ['books.tags'] });
    assert.deepEqual(found.books.getItems().map((book) => book.title).sort(), ['x', 'y']);
    const fork = orm.em.fork();
    await fork.nativeDelete(Author, { id: author.id });
    assert.equal(await fork.count(Book), 0);
});

await check('changes, upsert and errors', async (orm) => {
    const em = orm.em.fork();
    em.create(Author, { name: 'a', email: 'e' });
    await em.flush();
    const author = await em.findOneOrFail(Author, { email: 'e' });
    author.name = 'b';
    await em.flush();
    await em.upsert(Author, { email: 'e', name: 'c' });
    assert.deepEqual((await orm.em.fork().findAll(Author)).map((row) => row.name), ['c']);
    assert.ok((await errorOf(() => orm.em.fork().insert(Author, { name: 'd', email: 'e' }))) instanceof UniqueConstraintViolationException);
    assert.ok((await errorOf(() => orm.em.fork().insert(Book, { title: 'x', author: 99 }))) instanceof ForeignKeyConstraintViolationException);
    assert.ok((await errorOf(() => orm.em.getConnection().execute('SELECT * FROM nowhere'))) instanceof Error);
    assert.ok(TableNotFoundException);
});

await check('transactions commit, roll back, and nest', async (orm) => {
    await orm.em.fork().transactional(async (em) => {
        em.create(Author, { name: 'a' });
        await em.flush();
        await errorOf(() => em.transactional(async (inner) => {
            inner.create(Author, { name: 'b' });
            await inner.flush();
            throw new Error('not this');
        }));
    });
    await errorOf(() => orm.em.fork().transactional(async (em) => {
        em.create(Author, { name: 'c' });
        await em.flush();
        throw new Error('not this');
    }));
    assert.deepEqual((await orm.em.fork().findAll(Author)).map((row) => row.name), ['a']);
});

await check('10,000 rows, seen by another', async (orm, url) => {
    for (let at = 0; at < 10_000; at += 1000) {
        await orm.em.fork().insertMany(Tag, Array.from({ length: 1000 }, (_, n) => ({ name: `tag ${at + n}` })));
    }
    const other = await connect(url);
    assert.equal((await other.em.fork().findAll(Tag)).length, 10_000);
    await other.close(true);
});

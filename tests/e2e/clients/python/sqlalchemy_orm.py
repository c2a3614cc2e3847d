"""SQLAlchemy with sqlalchemy-libsql, which uses libsql-experimental."""

import datetime

from sqlalchemy import JSON, DateTime, Float, ForeignKey, LargeBinary, MetaData, String, create_engine, func, inspect, select, text
from sqlalchemy.exc import DatabaseError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload

from checks import FLOATS, INTEGERS, Checks, error_of

checks = Checks("sqlalchemy-libsql", "sqlalchemy-libsql")

SMALL = [-(2**31), -1, 0, 1, 2, 2**31 - 1]


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    __table_args__ = {"sqlite_autoincrement": True}
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    email: Mapped[str | None] = mapped_column(unique=True)
    score: Mapped[float | None] = mapped_column(Float)
    big: Mapped[int | None]
    made: Mapped[datetime.datetime | None] = mapped_column(DateTime)
    extra: Mapped[dict | None] = mapped_column(JSON)
    posts: Mapped[list["Post"]] = relationship(back_populates="author", passive_deletes="all")


class Post(Base):
    __tablename__ = "post"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    user_id: Mapped[int | None] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"), index=True)
    author: Mapped[User | None] = relationship(back_populates="posts")


class Photo(Base):
    __tablename__ = "photo"
    id: Mapped[int] = mapped_column(primary_key=True)
    photo: Mapped[bytes] = mapped_column(LargeBinary)


def engine_of(url):
    return create_engine(url.replace("http://", "sqlite+libsql://", 1))


def check(name):
    def run(body):
        @checks.check(name)
        def _(url, _home):
            engine = engine_of(url)
            Base.metadata.create_all(engine)
            try:
                body(engine, url)
            finally:
                engine.dispose()

    return run


@check("the schema made twice, and reflected")
def _(engine, _url):
    Base.metadata.create_all(engine)
    found = inspect(engine)
    assert sorted(found.get_table_names()) == ["photo", "post", "user"], found.get_table_names()
    assert found.get_pk_constraint("user")["constrained_columns"] == ["id"]
    (key,) = found.get_foreign_keys("post")
    assert (key["referred_table"], key["options"]) == ("user", {"ondelete": "CASCADE"}), key
    assert [index["name"] for index in found.get_indexes("post")] == ["ix_post_user_id"]
    assert [unique["column_names"] for unique in found.get_unique_constraints("user")] == [["email"]]
    reflected = MetaData()
    reflected.reflect(engine)
    assert {column.name for column in reflected.tables["user"].columns} == {column.name for column in User.__table__.columns}
    Base.metadata.drop_all(engine)
    assert inspect(engine).get_table_names() == []


@check("rows of every kind")
def _(engine, _url):
    made = datetime.datetime(2023, 11, 14, 22, 13, 20, 123456)
    with Session(engine) as session:
        for at, big in enumerate(SMALL):
            session.add(User(name=f"ü€😀{at}", big=big, score=FLOATS[at], made=made, extra={"list": [1, "ü", None]}))
        session.commit()
    with Session(engine) as session:
        users = session.scalars(select(User).order_by(User.id)).all()
        assert [user.big for user in users] == SMALL
        assert [user.score for user in users] == FLOATS
        assert users[0].name == "ü€😀0"
        assert (users[0].made, users[0].extra, users[0].email) == (made, {"list": [1, "ü", None]}, None)


@check("integers of 64 bits")
def _(engine, _url):
    with Session(engine) as session:
        session.add_all(User(name="a", big=big) for big in INTEGERS)
        session.commit()
        assert session.scalars(select(User.big).order_by(User.id)).all() == INTEGERS


@check("blobs")
def _(engine, _url):
    with Session(engine) as session:
        session.add(Photo(photo=bytes(range(256))))
        session.commit()
        assert session.scalar(select(Photo.photo)) == bytes(range(256))


@check("relations, and cascades of the database")
def _(engine, _url):
    with Session(engine) as session:
        session.add(User(name="a", posts=[Post(title="x"), Post(title="y")]))
        session.add(User(name="b"))
        session.commit()
    with Session(engine) as session:
        users = session.scalars(select(User).options(selectinload(User.posts)).order_by(User.id)).all()
        assert [[post.title for post in user.posts] for user in users] == [["x", "y"], []]
        counted = session.execute(select(User.name, func.count(Post.id)).outerjoin(Post).group_by(User.id)).all()
        assert counted == [("a", 2), ("b", 0)]
        session.execute(User.__table__.delete().where(User.id == 1))
        session.commit()
        assert session.scalar(select(func.count()).select_from(Post)) == 0


@check("commit, rollback and savepoints")
def _(engine, _url):
    with Session(engine) as session:
        session.add(User(name="a"))
        session.commit()
        session.add(User(name="b"))
        session.rollback()
        session.add(User(name="c"))
        with session.begin_nested() as nested:
            session.add(User(name="d"))
            session.flush()
            nested.rollback()
        session.commit()
    with Session(engine) as session:
        assert session.scalars(select(User.name).order_by(User.id)).all() == ["a", "c"]


@check("errors are of their class")
def _(engine, _url):
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO user(name, email) VALUES ('a', 'e')"))

    def insert(sql):
        with engine.begin() as connection:
            connection.execute(text(sql))

    assert isinstance(error_of(lambda: insert("INSERT INTO user(name, email) VALUES ('b', 'e')")), IntegrityError)
    assert isinstance(error_of(lambda: insert("INSERT INTO post(title, user_id) VALUES ('x', 9)")), IntegrityError)
    assert isinstance(error_of(lambda: insert("INSERT INTO nowhere VALUES (1)")), DatabaseError)


@check("10,000 rows, seen by another")
def _(engine, url):
    with engine.begin() as connection:
        for at in range(0, 10_000, 1000):
            values = ",".join(f"({n + 1}, 'post {n}')" for n in range(at, at + 1000))
            connection.exec_driver_sql(f"INSERT INTO post(id, title) VALUES {values}")
    other = engine_of(url)
    with Session(other) as session:
        assert session.scalars(select(Post.title).order_by(Post.id)).all() == [f"post {n}" for n in range(10_000)]
    other.dispose()

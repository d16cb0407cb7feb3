//! SQLite: ids are UUIDs in upper case, times are text, as Entity Framework writes them.

use super::Statements;

pub(super) static STATEMENTS: Statements = Statements {
    original_tables: &[
        r#"CREATE TABLE IF NOT EXISTS "__EFMigrationsHistory" ("MigrationId" TEXT NOT NULL CONSTRAINT "PK___EFMigrationsHistory" PRIMARY KEY, "ProductVersion" TEXT NOT NULL)"#,
        r#"CREATE TABLE IF NOT EXISTS "ApplicationDatas" ("Id" INTEGER NOT NULL CONSTRAINT "PK_ApplicationDatas" PRIMARY KEY AUTOINCREMENT, "SymmetricKey" TEXT NULL)"#,
        r#"CREATE TABLE IF NOT EXISTS "UserKeys" ("Id" TEXT NOT NULL CONSTRAINT "PK_UserKeys" PRIMARY KEY, "Key" TEXT NULL, "CreationDate" TEXT NOT NULL, "RevisionDate" TEXT NULL, "LastAccessDate" TEXT NULL)"#,
        r#"INSERT INTO "__EFMigrationsHistory" VALUES ('20210820155938_InitialCreate', '8.0.34') ON CONFLICT DO NOTHING"#,
    ],
    own_table: r#"CREATE TABLE IF NOT EXISTS "ClavigerUserKeys" ("Id" TEXT NOT NULL CONSTRAINT "PK_ClavigerUserKeys" PRIMARY KEY, "Wrapped" TEXT NOT NULL)"#,
    own_tables: "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'ClavigerUserKeys'",
    symmetric_keys: r#"SELECT "SymmetricKey" FROM "ApplicationDatas" ORDER BY "Id""#,
    seed: r#"INSERT INTO "ApplicationDatas" ("Id", "SymmetricKey") SELECT 1, ? WHERE NOT EXISTS (SELECT 1 FROM "ApplicationDatas") ON CONFLICT DO NOTHING"#,
    ids: r#"SELECT "Id" FROM "UserKeys" ORDER BY "Id""#,
    user: r#"SELECT "Key", "CreationDate", "RevisionDate", "LastAccessDate" FROM "UserKeys" WHERE "Id" = upper(?)"#,
    key: r#"SELECT "Key", NULL FROM "UserKeys" WHERE "Id" = upper(?)"#,
    keys: r#"SELECT u."Key", c."Wrapped" FROM "UserKeys" u LEFT JOIN "ClavigerUserKeys" c ON c."Id" = u."Id" WHERE u."Id" = upper(?)"#,
    insert_user: r#"INSERT INTO "UserKeys" ("Key", "CreationDate", "Id") VALUES (?, ?, upper(?)) ON CONFLICT DO NOTHING"#,
    insert_whole_user: r#"INSERT INTO "UserKeys" ("Key", "CreationDate", "RevisionDate", "LastAccessDate", "Id") VALUES (?, ?, ?, ?, upper(?)) ON CONFLICT DO NOTHING"#,
    replace_key: r#"UPDATE "UserKeys" SET "Key" = ?, "RevisionDate" = ? WHERE "Id" = upper(?)"#,
    clear_key: r#"UPDATE "UserKeys" SET "Key" = NULL WHERE "Id" = upper(?) AND "Key" = ?"#,
    restore_key: r#"UPDATE "UserKeys" SET "Key" = ? WHERE "Id" = upper(?) AND "Key" IS NULL"#,
    put_wrapped: r#"INSERT INTO "ClavigerUserKeys" ("Wrapped", "Id") VALUES (?, upper(?)) ON CONFLICT ("Id") DO UPDATE SET "Wrapped" = excluded."Wrapped""#,
    take_wrapped: r#"DELETE FROM "ClavigerUserKeys" WHERE "Id" = upper(?) AND "Wrapped" = ?"#,
    delete_wrapped: r#"DELETE FROM "ClavigerUserKeys" WHERE "Id" = upper(?)"#,
    delete_user: r#"DELETE FROM "UserKeys" WHERE "Id" = upper(?)"#,
    touch: r#"UPDATE "UserKeys" SET "LastAccessDate" = ? WHERE "Id" = upper(?)"#,
    // The transaction itself is one: BEGIN IMMEDIATE.
    lock: None,
    unlock: None,
};

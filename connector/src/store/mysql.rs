//! MySQL and MariaDB: ids are `char(36)` in ASCII that ignores case.

use super::Statements;

pub(super) static STATEMENTS: Statements = Statements {
    original_tables: &[
        "CREATE TABLE IF NOT EXISTS `__EFMigrationsHistory` (`MigrationId` varchar(150) CHARACTER SET utf8mb4 NOT NULL, `ProductVersion` varchar(32) CHARACTER SET utf8mb4 NOT NULL, PRIMARY KEY (`MigrationId`)) CHARACTER SET utf8mb4",
        "CREATE TABLE IF NOT EXISTS `ApplicationDatas` (`Id` int NOT NULL AUTO_INCREMENT, `SymmetricKey` longtext CHARACTER SET utf8mb4 NULL, PRIMARY KEY (`Id`)) CHARACTER SET utf8mb4",
        "CREATE TABLE IF NOT EXISTS `UserKeys` (`Id` char(36) CHARACTER SET ascii COLLATE ascii_general_ci NOT NULL, `Key` longtext CHARACTER SET utf8mb4 NULL, `CreationDate` datetime(6) NOT NULL, `RevisionDate` datetime(6) NULL, `LastAccessDate` datetime(6) NULL, PRIMARY KEY (`Id`)) CHARACTER SET utf8mb4",
        "INSERT IGNORE INTO `__EFMigrationsHistory` VALUES ('20210820155954_InitialCreate', '8.0.34')",
    ],
    own_table: "CREATE TABLE IF NOT EXISTS `ClavigerUserKeys` (`Id` char(36) CHARACTER SET ascii COLLATE ascii_general_ci NOT NULL, `Wrapped` longtext CHARACTER SET utf8mb4 NOT NULL, PRIMARY KEY (`Id`)) CHARACTER SET utf8mb4",
    own_tables: "SELECT count(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = 'ClavigerUserKeys'",
    symmetric_keys: "SELECT `SymmetricKey` FROM `ApplicationDatas` ORDER BY `Id`",
    seed: "INSERT IGNORE INTO `ApplicationDatas` (`Id`, `SymmetricKey`) SELECT 1, ? FROM DUAL WHERE NOT EXISTS (SELECT 1 FROM `ApplicationDatas`)",
    ids: "SELECT `Id` FROM `UserKeys` ORDER BY `Id`",
    user: "SELECT `Key`, CAST(`CreationDate` AS CHAR), CAST(`RevisionDate` AS CHAR), CAST(`LastAccessDate` AS CHAR) FROM `UserKeys` WHERE `Id` = ?",
    key: "SELECT `Key`, CAST(NULL AS CHAR) FROM `UserKeys` WHERE `Id` = ?",
    keys: "SELECT u.`Key`, c.`Wrapped` FROM `UserKeys` u LEFT JOIN `ClavigerUserKeys` c ON c.`Id` = u.`Id` WHERE u.`Id` = ?",
    insert_user: "INSERT IGNORE INTO `UserKeys` (`Key`, `CreationDate`, `Id`) VALUES (?, ?, ?)",
    insert_whole_user: "INSERT IGNORE INTO `UserKeys` (`Key`, `CreationDate`, `RevisionDate`, `LastAccessDate`, `Id`) VALUES (?, ?, ?, ?, ?)",
    replace_key: "UPDATE `UserKeys` SET `Key` = ?, `RevisionDate` = ? WHERE `Id` = ?",
    clear_key: "UPDATE `UserKeys` SET `Key` = NULL WHERE `Id` = ? AND `Key` = BINARY ?",
    restore_key: "UPDATE `UserKeys` SET `Key` = ? WHERE `Id` = ? AND `Key` IS NULL",
    put_wrapped: "INSERT INTO `ClavigerUserKeys` (`Wrapped`, `Id`) VALUES (?, ?) ON DUPLICATE KEY UPDATE `Wrapped` = VALUES(`Wrapped`)",
    take_wrapped: "DELETE FROM `ClavigerUserKeys` WHERE `Id` = ? AND `Wrapped` = BINARY ?",
    delete_wrapped: "DELETE FROM `ClavigerUserKeys` WHERE `Id` = ?",
    delete_user: "DELETE FROM `UserKeys` WHERE `Id` = ?",
    touch: "UPDATE `UserKeys` SET `LastAccessDate` = ? WHERE `Id` = ?",
    lock: Some("SELECT CAST(GET_LOCK('claviger-connector', 60) AS CHAR)"),
    unlock: Some("SELECT CAST(RELEASE_LOCK('claviger-connector') AS CHAR)"),
};

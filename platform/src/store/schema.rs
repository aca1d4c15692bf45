//! The tables, and the steps from one version of them to the next.

use rusqlite::Connection;

/// One step a version; step n makes version n + 1.
///
/// A response holds its own items and a link to the one before it, so a conversation of n turns takes
/// room for n turns. `conversation_before` is where the conversation stood when the response was made.
const STEPS: &[&str] = &["
    CREATE TABLE conversations (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        metadata TEXT NOT NULL,
        next_position INTEGER NOT NULL DEFAULT 0
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE conversation_items (
        conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        id TEXT NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (conversation_id, position)
    ) STRICT;
    CREATE UNIQUE INDEX conversation_items_by_id ON conversation_items (conversation_id, id);
    CREATE TABLE responses (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        previous_id TEXT,
        depth INTEGER NOT NULL,
        conversation_id TEXT,
        conversation_before INTEGER,
        body TEXT NOT NULL
    ) STRICT;
    CREATE TABLE response_items (
        response_id TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        is_output INTEGER NOT NULL,
        id TEXT NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (response_id, position)
    ) STRICT;
"];

/// Brings a database to the newest version, in one transaction.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), String> {
    let run = |connection: &mut Connection| -> Result<Result<(), String>, rusqlite::Error> {
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let version: usize = transaction
            .query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))?
            .unsigned_abs() as usize;
        if version > STEPS.len() {
            return Ok(Err(format!(
                "it was made by a newer version of Strata (schema {version}, this one knows {})",
                STEPS.len()
            )));
        }
        for step in &STEPS[version..] {
            transaction.execute_batch(step)?;
        }
        transaction.pragma_update(None, "user_version", STEPS.len() as i64)?;
        transaction.commit()?;
        Ok(Ok(()))
    };
    run(connection).map_err(|error| error.to_string())?
}

//! Gives one owner's objects to another.

use super::{Store, StoreError};
use crate::identity::Owner;

/// Every table whose rows have an owner.
const OWNED: [&str; 2] = ["conversations", "responses"];

impl Store {
    /// Makes everything of `from` belong to `to`, all of it or nothing, and returns how many objects that
    /// were. Where nothing belongs to `from`, nothing changes.
    pub(crate) async fn adopt(&self, from: &Owner, to: &Owner) -> Result<usize, StoreError> {
        let (from, to) = (from.clone(), to.clone());
        self.write(move |c| {
            let mut objects = 0;
            for table in OWNED {
                let statement = format!("UPDATE {table} SET owner = ?2 WHERE owner = ?1");
                objects += c.execute(&statement, [from.as_str(), to.as_str()])?;
            }
            Ok(objects)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn owners(store: &Store) -> Vec<String> {
        let read = store.read(|c| {
            let all = "SELECT id || ' ' || owner FROM conversations UNION ALL SELECT id || ' ' || owner FROM responses ORDER BY 1";
            Ok(c.prepare(all)?.query_map([], |r| r.get(0))?.collect::<Result<_, _>>()?)
        });
        read.await.unwrap()
    }

    #[tokio::test]
    async fn every_table_with_an_owner_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let found = store.read(|c| {
            let tables = "SELECT m.name FROM sqlite_schema m JOIN pragma_table_info(m.name) c
                          WHERE m.type = 'table' AND c.name = 'owner' ORDER BY 1";
            Ok(c.prepare(tables)?.query_map([], |r| r.get(0))?.collect::<Result<Vec<String>, _>>()?)
        });
        assert_eq!(found.await.unwrap(), OWNED);
    }

    #[tokio::test]
    async fn it_is_all_or_nothing_and_only_what_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let insert = "INSERT INTO conversations (id, owner, created_at, metadata)
                          VALUES ('c1', 'local', 0, '{}'), ('c2', 'bob', 0, '{}');
                      INSERT INTO responses (id, owner, created_at, depth, body)
                          VALUES ('r1', 'local', 0, 1, '{}'), ('r2', 'bob', 0, 1, '{}')";
        store.write(move |c| Ok(c.execute_batch(insert)?)).await.unwrap();
        let (local, ann) = (Owner::new("local"), Owner::new("ann"));
        let fails = "CREATE TRIGGER fails BEFORE UPDATE ON responses BEGIN SELECT RAISE(ABORT, 'no'); END";
        store.write(move |c| Ok(c.execute_batch(fails)?)).await.unwrap();
        assert!(store.adopt(&local, &ann).await.is_err());
        assert_eq!(owners(&store).await, ["c1 local", "c2 bob", "r1 local", "r2 bob"]);
        store.write(|c| Ok(c.execute_batch("DROP TRIGGER fails")?)).await.unwrap();
        assert_eq!(store.adopt(&local, &ann).await, Ok(2));
        assert_eq!(owners(&store).await, ["c1 ann", "c2 bob", "r1 ann", "r2 bob"]);
        assert_eq!(store.adopt(&local, &ann).await, Ok(0));
    }
}

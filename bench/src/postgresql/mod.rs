//! PostgreSQL as [`crate::sql`] asks it: its own protocol, prepared statements, a round trip for each.
//!
//! A transfer is five round trips, so that a failover falls between them: until COMMIT is sent nothing may
//! remain of it. The user is `postgres`, the database too, without a password.

use crate::sql::{Contents, Failure, Row, Session, Transfer};
use std::error::Error as _;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Error, NoTls, Statement};

/// Indexes that amcheck knows: B-trees, those of the catalogs too.
const INDEXES: &str = "SELECT c.oid, c.relname::text FROM pg_class c JOIN pg_am a ON a.oid = c.relam \
                       WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p' \
                       ORDER BY c.oid";
/// Complaints that are kept.
const COMPLAINTS: usize = 16;

/// A connection.
pub struct Postgresql {
    client: Client,
    patience: Duration,
    statements: Option<Statements>,
}

struct Statements {
    update: Statement,
    insert: Statement,
    find: Statement,
    sum: Statement,
}

impl Postgresql {
    async fn execute(&self, sql: &str) -> Result<(), Failure> {
        self.answer(self.client.batch_execute(sql)).await
    }

    /// Waits for an answer as long as there is patience.
    async fn answer<T>(&self, asked: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
        within(self.patience, asked).await
    }

    fn statements(&self) -> Result<&Statements, Failure> {
        let missing = || Failure::Refused("nothing is prepared on this connection".to_owned());
        self.statements.as_ref().ok_or_else(missing)
    }

    async fn number(
        &self,
        statement: &Statement,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<i64, Failure> {
        let row = self
            .answer(self.client.query_one(statement, values))
            .await?;
        row.try_get(0).map_err(failure)
    }

    /// All of a transfer but its end.
    async fn enter(&self, transfer: &Transfer) -> Result<(), Failure> {
        let statements = self.statements()?;
        self.execute("BEGIN").await?;
        let mut changes = [
            (transfer.source, -transfer.amount),
            (transfer.target, transfer.amount),
        ];
        // Everybody locks rows in one order: nobody waits in a circle.
        changes.sort_unstable();
        for (account, change) in &changes {
            let changed = self
                .answer(self.client.execute(&statements.update, &[change, account]))
                .await?;
            if changed != 1 {
                let what = format!("{changed} rows of account {account} were updated; expected 1");
                return Err(Failure::Refused(what));
            }
        }
        let Transfer {
            id,
            source,
            target,
            amount,
            note,
        } = transfer;
        let values: [&(dyn ToSql + Sync); 5] = [id, source, target, amount, note];
        self.answer(self.client.execute(&statements.insert, &values))
            .await
            .map(drop)
    }
}

impl Session for Postgresql {
    const NAME: &'static str = "PostgreSQL";

    async fn open(target: SocketAddr, patience: Duration) -> Result<Self, Failure> {
        let mut config = Config::new();
        config
            .hostaddr(target.ip())
            .port(target.port())
            .user("postgres")
            .dbname("postgres")
            // Otherwise the crate logs notices: that a table to be dropped is not there.
            .options("-c client_min_messages=warning")
            .application_name("lockstep-bench");
        let (client, connection) = within(patience, config.connect(NoTls)).await?;
        // What ends it, everybody who asks on it is told, too.
        tokio::spawn(async { drop(connection.await) });
        Ok(Self {
            client,
            patience,
            statements: None,
        })
    }

    async fn prepare(&mut self, accounts: u32) -> Result<(), Failure> {
        self.execute(&format!(
            "CREATE EXTENSION IF NOT EXISTS amcheck;
             DROP TABLE IF EXISTS transfers, accounts;
             CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL);
             CREATE TABLE transfers (id bigint PRIMARY KEY, source bigint NOT NULL,
                 target bigint NOT NULL, amount bigint NOT NULL, note text NOT NULL);
             CREATE INDEX transfers_source ON transfers (source);
             INSERT INTO accounts SELECT n, 0 FROM generate_series(0, {accounts} - 1) n;"
        ))
        .await
    }

    async fn begin(&mut self) -> Result<(), Failure> {
        let prepare = |sql| self.answer(self.client.prepare(sql));
        self.statements = Some(Statements {
            update: prepare("UPDATE accounts SET balance = balance + $1 WHERE id = $2").await?,
            insert: prepare("INSERT INTO transfers VALUES ($1, $2, $3, $4, $5)").await?,
            find: prepare("SELECT count(*) FROM transfers WHERE id = $1").await?,
            sum: prepare("SELECT sum(balance)::bigint FROM accounts").await?,
        });
        Ok(())
    }

    async fn transfer(&mut self, transfer: &Transfer) -> Result<(), Failure> {
        let entered = self.enter(transfer).await.map_err(Failure::before_commit);
        let done = match entered {
            Ok(()) => self.execute("COMMIT").await,
            refused => refused,
        };
        if let Err(Failure::Refused(_)) = &done {
            self.execute("ROLLBACK")
                .await
                .map_err(Failure::before_commit)?;
        }
        done
    }

    async fn knows(&mut self, id: i64) -> Result<bool, Failure> {
        let find = &self.statements()?.find;
        Ok(self.number(find, &[&id]).await? > 0)
    }

    async fn sum(&mut self) -> Result<i64, Failure> {
        self.number(&self.statements()?.sum, &[]).await
    }

    async fn checkpoint(&mut self) -> Result<(), Failure> {
        self.execute("CHECKPOINT").await
    }

    async fn contents(&mut self) -> Result<Contents, Failure> {
        // By a scan of the tables: that their indexes agree is amcheck's to say.
        self.execute("SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off")
            .await?;
        let sql = "SELECT id, source, target, amount, note FROM transfers";
        let rows = self.answer(self.client.query(sql, &[])).await?;
        let transfers = rows
            .iter()
            .map(|row| {
                Ok(Row {
                    id: row.try_get(0)?,
                    source: row.try_get(1)?,
                    target: row.try_get(2)?,
                    amount: row.try_get(3)?,
                    note: row.try_get(4)?,
                })
            })
            .collect::<Result<Vec<Row>, Error>>()
            .map_err(failure)?;
        let sql = "SELECT balance FROM accounts ORDER BY id";
        let rows = self.answer(self.client.query(sql, &[])).await?;
        let balances = rows.iter().map(|row| row.try_get(0));
        let balances = balances.collect::<Result<_, Error>>().map_err(failure)?;
        self.execute("RESET enable_indexscan; RESET enable_indexonlyscan; RESET enable_bitmapscan")
            .await?;
        Ok(Contents {
            transfers,
            balances,
        })
    }

    async fn check(&mut self) -> Result<(u64, Vec<String>), Failure> {
        let mut complaints = Vec::new();
        let mut checked = 0;
        let indexes = self.answer(self.client.query(INDEXES, &[])).await?;
        let check = "SELECT bt_index_check($1::oid, true)";
        let check = self.answer(self.client.prepare(check)).await?;
        for index in &indexes {
            let oid: u32 = index.try_get(0).map_err(failure)?;
            let name: String = index.try_get(1).map_err(failure)?;
            checked += 1;
            match self.answer(self.client.query(&check, &[&oid])).await {
                Ok(_) => {}
                Err(Failure::Refused(what)) => complaints.push(format!("index {name}: {what}")),
                Err(lost) => return Err(lost),
            }
        }
        for table in ["accounts", "transfers"] {
            let sql = format!("SELECT blkno, msg FROM verify_heapam('{table}')");
            checked += 1;
            for row in self.answer(self.client.query(&sql, &[])).await? {
                let block: i64 = row.try_get(0).map_err(failure)?;
                let what: String = row.try_get(1).map_err(failure)?;
                complaints.push(format!("table {table}, block {block}: {what}"));
            }
        }
        complaints.truncate(COMPLAINTS);
        Ok((checked, complaints))
    }
}

async fn within<T>(
    patience: Duration,
    asked: impl Future<Output = Result<T, Error>>,
) -> Result<T, Failure> {
    match timeout(patience, asked).await {
        Ok(answer) => answer.map_err(failure),
        Err(_) => Err(Failure::silent(patience)),
    }
}

/// What the server says is an answer, if it does not end the connection; everything else is a loss.
fn failure(error: Error) -> Failure {
    match error.as_db_error() {
        Some(said) if !error.is_closed() && !matches!(said.severity(), "FATAL" | "PANIC") => {
            Failure::Refused(format!("{} ({})", said.message(), said.code().code()))
        }
        Some(said) => Failure::Lost(said.message().to_owned()),
        None => Failure::Lost(match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        }),
    }
}

//! SQLite as [`crate::sql`] asks it: its shell at the other end of a TCP connection, one for each.
//!
//! A request is a line of SQL and a line that has the shell print a mark; what comes before the mark is the
//! answer. A transfer is one line, and answered by nothing; whatever is said instead is why it was refused.

use crate::sql::{Contents, Failure, Row, Session, Transfer};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest line that is taken, bytes.
const LINE_MOST: u64 = 64 << 10;
/// Most lines of one answer.
const LINES_MOST: usize = 10_000_000;

/// A connection.
pub struct Sqlite {
    stream: BufReader<TcpStream>,
    patience: Duration,
    /// Of the last mark.
    number: u64,
}

impl Sqlite {
    /// The lines that answer `sql`, which is one line.
    async fn ask(&mut self, sql: &str) -> Result<Vec<String>, Failure> {
        self.number += 1;
        let mark = format!("@{}", self.number);
        let patience = self.patience;
        let request = format!("{sql}\n.print {mark}\n");
        timeout(patience, self.exchange(&request, &mark))
            .await
            .unwrap_or_else(|_| Err(Failure::silent(patience)))
    }

    async fn exchange(&mut self, request: &str, mark: &str) -> Result<Vec<String>, Failure> {
        let lost = |error: std::io::Error| Failure::Lost(error.to_string());
        self.stream
            .get_mut()
            .write_all(request.as_bytes())
            .await
            .map_err(lost)?;
        let mut lines = Vec::new();
        loop {
            // Rows and mark leave the guest one after the other; the second waits for the first's
            // acknowledgement (Nagle), which is therefore not to be delayed.
            let at_once = rustix::net::sockopt::set_tcp_quickack(self.stream.get_ref(), true);
            at_once.map_err(|errno| lost(errno.into()))?;
            let mut line = Vec::new();
            let mut limited = (&mut self.stream).take(LINE_MOST);
            limited.read_until(b'\n', &mut line).await.map_err(lost)?;
            if line.pop() != Some(b'\n') || lines.len() == LINES_MOST {
                let said = String::from_utf8_lossy(&line);
                return Err(Failure::Lost(format!(
                    "the connection ended, or never ends, in the answer {said:?}"
                )));
            }
            let line = String::from_utf8_lossy(&line).into_owned();
            if line == mark {
                return Ok(lines);
            }
            lines.push(line);
        }
    }

    /// Does what is answered by nothing.
    async fn execute(&mut self, sql: &str) -> Result<(), Failure> {
        let said = self.ask(sql).await?;
        if said.is_empty() {
            return Ok(());
        }
        Err(Failure::Refused(said.join(" / ")))
    }

    async fn number(&mut self, sql: &str) -> Result<i64, Failure> {
        let said = self.ask(sql).await?;
        let one = <[String; 1]>::try_from(said).map_err(|said| refused(&said))?;
        one[0].parse().map_err(|_| refused(&one))
    }
}

impl Session for Sqlite {
    const NAME: &'static str = "SQLite";

    async fn open(target: SocketAddr, patience: Duration) -> Result<Self, Failure> {
        let lost = |error: std::io::Error| Failure::Lost(error.to_string());
        let stream = timeout(patience, TcpStream::connect(target))
            .await
            .map_err(|_| Failure::silent(patience))?
            .map_err(lost)?;
        stream.set_nodelay(true).map_err(lost)?;
        let mut session = Self {
            stream: BufReader::new(stream),
            patience,
            number: 0,
        };
        // That it answers, before another connection is opened: the server's backlog is short.
        session.execute("").await?;
        Ok(session)
    }

    async fn prepare(&mut self, accounts: u32) -> Result<(), Failure> {
        self.execute(&format!(
            "BEGIN IMMEDIATE; DROP TABLE IF EXISTS transfers; DROP TABLE IF EXISTS accounts; \
             CREATE TABLE accounts (id integer PRIMARY KEY, balance integer NOT NULL); \
             CREATE TABLE transfers (id integer PRIMARY KEY, source integer NOT NULL, \
             target integer NOT NULL, amount integer NOT NULL, note text NOT NULL); \
             CREATE INDEX transfers_source ON transfers (source); \
             WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {accounts}) \
             INSERT INTO accounts SELECT n, 0 FROM numbers; COMMIT;"
        ))
        .await
    }

    async fn begin(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn transfer(&mut self, transfer: &Transfer) -> Result<(), Failure> {
        let Transfer {
            id,
            source,
            target,
            amount,
            note,
        } = transfer;
        let done = self
            .execute(&format!(
                "BEGIN IMMEDIATE; UPDATE accounts SET balance = balance - {amount} WHERE id = {source}; \
                 UPDATE accounts SET balance = balance + {amount} WHERE id = {target}; \
                 INSERT INTO transfers VALUES ({id}, {source}, {target}, {amount}, '{note}'); COMMIT;"
            ))
            .await;
        if let Err(Failure::Refused(_)) = &done {
            // If there is nothing to roll back it says so, which is as well.
            self.ask("ROLLBACK;").await?;
        }
        done
    }

    async fn knows(&mut self, id: i64) -> Result<bool, Failure> {
        let sql = format!("SELECT count(*) FROM transfers WHERE id = {id};");
        Ok(self.number(&sql).await? > 0)
    }

    async fn sum(&mut self) -> Result<i64, Failure> {
        self.number("SELECT sum(balance) FROM accounts;").await
    }

    async fn checkpoint(&mut self) -> Result<(), Failure> {
        // Busy or not, pages of the log, pages written back: three numbers, or words.
        let said = self.ask("PRAGMA wal_checkpoint(PASSIVE);").await?;
        let numbers = |line: &String| line.split('|').all(|part| part.parse::<i64>().is_ok());
        if said.len() == 1 && said.iter().all(numbers) {
            Ok(())
        } else {
            Err(refused(&said))
        }
    }

    async fn contents(&mut self) -> Result<Contents, Failure> {
        let sql = "SELECT id, source, target, amount, note FROM transfers NOT INDEXED;";
        let said = self.ask(sql).await?;
        let transfers = said
            .iter()
            .map(|line| row(line).ok_or_else(|| refused(std::slice::from_ref(line))))
            .collect::<Result<_, _>>()?;
        let said = self
            .ask("SELECT balance FROM accounts ORDER BY id;")
            .await?;
        let balances = said
            .iter()
            .map(|line| {
                line.parse()
                    .map_err(|_| refused(std::slice::from_ref(line)))
            })
            .collect::<Result<_, _>>()?;
        Ok(Contents {
            transfers,
            balances,
        })
    }

    async fn check(&mut self) -> Result<(u64, Vec<String>), Failure> {
        let said = self.ask("PRAGMA integrity_check;").await?;
        Ok((1, if said == ["ok"] { Vec::new() } else { said }))
    }
}

fn row(line: &str) -> Option<Row> {
    let mut parts = line.split('|');
    let mut number = || parts.next()?.parse().ok();
    let (id, source, target, amount) = (number()?, number()?, number()?, number()?);
    let note = parts.next()?.to_owned();
    parts.next().is_none().then_some(Row {
        id,
        source,
        target,
        amount,
        note,
    })
}

fn refused(said: &[String]) -> Failure {
    Failure::Refused(format!("unexpected answer {}", said.join(" / ")))
}

//! The server's own figures of its transactions, from `/metrics`.

use anyhow::Context;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest time to read `/metrics`.
const PAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Transactions that recorded events, since the start of the server or in an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Commits {
    pub count: f64,
    /// Sum of the times from taking a batch to its commit.
    pub seconds: f64,
    pub events: f64,
}

impl Commits {
    /// Reads the figures since the start of the server.
    pub async fn read(http_address: &str) -> anyhow::Result<Self> {
        let page = async {
            let mut stream = TcpStream::connect(http_address).await?;
            // With HTTP/1.0 the answer is not chunked and ends with the connection.
            let request = format!("GET /metrics HTTP/1.0\r\nHost: {http_address}\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut page = String::new();
            stream.read_to_string(&mut page).await?;
            Ok::<_, std::io::Error>(page)
        };
        let page = tokio::time::timeout(PAGE_TIMEOUT, page).await.context("the server's metrics do not come")?;
        Ok(Self::parse(&page.context("the server's metrics cannot be read")?))
    }

    fn parse(page: &str) -> Self {
        let value = |name: &str| {
            let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
        };
        Self {
            count: value("meterd_commit_seconds_count"),
            seconds: value("meterd_commit_seconds_sum"),
            events: value("meterd_batch_events_sum"),
        }
    }

    /// The transactions since `before`. `None` if there were none.
    pub fn since(self, before: Self) -> Option<Self> {
        let count = self.count - before.count;
        let since = Self { count, seconds: self.seconds - before.seconds, events: self.events - before.events };
        (count > 0.0).then_some(since)
    }

    /// Average time from taking a batch to its commit, in milliseconds.
    pub fn mean_ms(self) -> f64 {
        self.seconds * 1e3 / self.count
    }

    /// Average number of events of a transaction.
    pub fn mean_events(self) -> f64 {
        self.events / self.count
    }
}

#[cfg(test)]
mod tests {
    use super::Commits;

    #[test]
    fn sums_and_counts_are_read_and_nothing_that_only_begins_like_them() {
        let page = "HTTP/1.0 200 OK\r\n\r\n# TYPE meterd_commit_seconds histogram\nmeterd_commit_seconds_bucket{le=\"1\"} 9\n\
                    meterd_commit_seconds_sums 9\nmeterd_commit_seconds_sum 1.5\nmeterd_commit_seconds_count 3\nmeterd_batch_events_sum 60\n";
        let commits = Commits::parse(page);
        assert_eq!(commits, Commits { count: 3.0, seconds: 1.5, events: 60.0 });
        let since = commits.since(Commits { count: 1.0, seconds: 0.5, events: 20.0 }).unwrap();
        assert_eq!((since.mean_ms(), since.mean_events()), (500.0, 20.0));
        assert_eq!(commits.since(commits), None);
    }
}

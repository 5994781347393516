//! Faults survived, with figures: servers and databases that are killed, networks that are cut, callers that give up, disks
//! that run full, clocks that jump, and a million repeats. After each, everything acknowledged is there once, every sum is that
//! of the events, every subscriber's chain is unbroken, and nothing hangs or leaks.
//!
//! Short in `cargo test`. Long, one after the other:
//! `cargo test --release --test faults -- --ignored --nocapture --test-threads=1`.
//! `METERD_FAULTS_SEED` repeats the choices of a run, `METERD_FAULTS_COUNT` sets how often, `METERD_SOAK_SECONDS` how long the
//! soak goes on. `tests/faults/mutants` shows that the suite can fail.
//!
//! In reading order: the scenarios (`kills`, `cuts`, `cancelled`, `disk_full`, `frozen`, `clocks`, `repeats`, `soak`), what they happen to
//! (`world`, with `place`, `database`, `replica`, `inside` and `proxy`), who works meanwhile (`load`, `calls`, `subscribers`,
//! `events`), and what must hold (`journal`, `check`, `held`).

mod calls;
mod cancelled;
mod check;
mod clocks;
mod cuts;
mod database;
mod disk_full;
mod events;
mod frozen;
mod held;
mod inside;
mod journal;
mod kills;
mod load;
mod place;
mod proxy;
mod repeats;
mod replica;
mod run;
mod soak;
mod subscribers;
mod world;

//! Fault injection: servers and databases are killed, networks are interrupted, callers cancel, disks become full,
//! clocks jump, and events are repeated a million times. After each fault, every acknowledged event exists once, every
//! sum is equal to that of the events, every subscriber has received all changes, and nothing hangs or leaks.
//!
//! `cargo test` runs the short scenarios. To run the long scenarios one after the other:
//! `cargo test --release --test faults -- --ignored --nocapture --test-threads=1`.
//! `METERD_FAULTS_SEED` repeats the random choices of a run, `METERD_FAULTS_COUNT` sets the number of faults, and
//! `METERD_SOAK_SECONDS` the duration of the soak test. `tests/faults/mutants` shows that the suite can fail.
//!
//! In reading order: the scenarios (`kills`, `cuts`, `cancelled`, `disk_full`, `stopped_database`, `clocks`, `repeats`,
//! `reprice`, `soak`), the system under test (`deployment`, with `scenario_dir`, `database`, `replica`, `in_process`, `jumping_clock` and `proxy`),
//! the callers (`load`, `calls`, `subscribers`, `events`), and the checks (`journal`, `check`, `resources`).

mod calls;
mod cancelled;
mod check;
mod clocks;
mod cuts;
mod database;
mod deployment;
mod disk_full;
mod events;
mod in_process;
mod journal;
mod jumping_clock;
mod kills;
mod load;
mod proxy;
mod repeats;
mod replica;
mod reprice;
mod resources;
mod run;
mod scenario_dir;
mod soak;
mod stopped_database;
mod subscribers;

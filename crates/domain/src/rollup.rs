//! Computes what a batch of events adds to the sums of days and months, and the sums of a range of days.

use crate::decimal::Total;
use crate::event::{Charge, PricedEvent};
use crate::measures::Measures;
use crate::period::Month;
use chrono::NaiveDate;
use std::collections::BTreeMap;
use std::ops::{AddAssign, Sub};
use std::sync::Arc;

macro_rules! sums {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        /// Sums over events. A difference of sums can be negative.
        ///
        /// This list is the only source of the sums. The store has a test that each of its statements has all of them.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Sums {
            $($(#[$doc])* pub $name: $type,)*
        }

        impl Sums {
            /// The names of the sums, which are also their columns, in their order.
            pub const NAMES: &[&str] = &[$(stringify!($name),)*];
        }

        impl AddAssign for Sums {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }

        impl Sub for Sums {
            type Output = Self;

            fn sub(self, other: Self) -> Self {
                Self { $($name: self.$name - other.$name,)* }
            }
        }
    };
}

sums! {
    /// Events.
    request_count: i64,
    units: Total,
    input_tokens: i64,
    output_tokens: i64,
    /// Tokens that are also counted in `input_tokens`.
    cached_input_tokens: i64,
    /// The sum of the charges, in the currency of the deployment.
    cost: Total,
    /// Events that have no charge.
    unpriced_event_count: i64,
}

/// Client and month.
pub type MonthKey = (Arc<str>, Month);
/// Client, month and service.
pub type MonthServiceKey = (Arc<str>, Month, Arc<str>);
/// Client, day, service, operation and model.
pub type DayKey = (Arc<str>, NaiveDate, Arc<str>, Arc<str>, Arc<str>);

/// Client, day, service, operation and model, and the name of a measure that is not a field of an event.
pub type DayMeasureKey = (DayKey, Arc<str>);

/// The sums of new events by month and by day. All lists are sorted. The sums of services can be computed from the days.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NewSums {
    pub months: Vec<(MonthKey, Sums)>,
    pub days: Vec<(DayKey, Sums)>,
    pub day_measures: Vec<(DayMeasureKey, Total)>,
}

/// The sums to add to each row. Rows of a table are in the order in which they are locked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Deltas {
    pub months: BTreeMap<MonthKey, Sums>,
    pub month_services: BTreeMap<MonthServiceKey, Sums>,
    pub days: BTreeMap<DayKey, Sums>,
    pub day_measures: BTreeMap<DayMeasureKey, Total>,
}

/// Sums of one operation of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationSums {
    pub service: String,
    pub operation: String,
    pub sums: Sums,
}

/// The sums of a client's days in a range: by day, by service, and of the operations with the highest cost. Other operations are
/// not kept, because a client can have any number of them.
#[derive(Clone, Debug, Default)]
pub struct RangeSums {
    /// The days with usage.
    pub days: BTreeMap<NaiveDate, Sums>,
    /// The services with usage.
    pub services: BTreeMap<String, Sums>,
    /// Sums of measures that are not in [`Sums`].
    pub measures: BTreeMap<String, Total>,
    /// The operations with the highest cost so far, and others.
    operations: Vec<OperationSums>,
    operations_max: usize,
}

impl RangeSums {
    /// Returns sums without usage that keep this number of operations.
    pub fn new(operations_max: usize) -> Self {
        Self { operations_max, ..Self::default() }
    }

    /// Adds all usage of a day.
    pub fn add_day(&mut self, day: NaiveDate, sums: Sums) {
        *self.days.entry(day).or_default() += sums;
    }

    /// Adds all usage of an operation, which must not have been added before.
    pub fn add_operation(&mut self, operation: OperationSums) {
        match self.services.get_mut(&operation.service) {
            Some(service) => *service += operation.sums,
            None => drop(self.services.insert(operation.service.clone(), operation.sums)),
        }
        self.operations.push(operation);
        if self.operations.len() > 2 * self.operations_max {
            self.drop_cheaper_operations();
        }
    }

    /// Returns the sums of the whole range.
    pub fn total(&self) -> Sums {
        self.days.values().copied().sum()
    }

    /// Takes the operations with the highest cost, highest first, and operations with the same cost by name.
    pub fn take_operations(&mut self) -> Vec<OperationSums> {
        self.drop_cheaper_operations();
        std::mem::take(&mut self.operations)
    }

    fn drop_cheaper_operations(&mut self) {
        self.operations.sort_by(|left, right| {
            let by_name = || (&left.service, &left.operation).cmp(&(&right.service, &right.operation));
            right.sums.cost.cmp(&left.sums.cost).then_with(by_name)
        });
        self.operations.truncate(self.operations_max);
    }
}

/// Sorts rows by cost, highest first. Rows with the same cost keep their order.
pub fn by_cost<T>(mut rows: Vec<T>, sums: impl Fn(&T) -> &Sums) -> Vec<T> {
    rows.sort_by_key(|row| std::cmp::Reverse(sums(row).cost));
    rows
}

impl Sums {
    /// Returns the sums of one event.
    pub fn of(measures: &Measures, charge: Charge) -> Self {
        let (cost, unpriced_event_count) = match charge {
            Charge::Priced { charge, .. } => (charge.into(), 0),
            Charge::Unpriced(_) => (Total::ZERO, 1),
        };
        Self {
            request_count: 1,
            units: measures.units.into(),
            input_tokens: measures.input_tokens,
            output_tokens: measures.output_tokens,
            cached_input_tokens: measures.cached_input_tokens,
            cost,
            unpriced_event_count,
        }
    }

    /// Returns the change of the sums when one unpriced event is priced.
    pub fn of_pricing(cost: Total) -> Self {
        Self { cost, unpriced_event_count: -1, ..Self::default() }
    }
}

impl std::iter::Sum for Sums {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, next| {
            sum += next;
            sum
        })
    }
}

impl Deltas {
    /// Adds to the day, to its month, and to its service in that month.
    pub fn add(&mut self, key: DayKey, sums: Sums) {
        let month = Month::of(key.1);
        *self.months.entry((key.0.clone(), month)).or_default() += sums;
        *self.month_services.entry((key.0.clone(), month, key.2.clone())).or_default() += sums;
        *self.days.entry(key).or_default() += sums;
    }
}

impl NewSums {
    /// Returns the sums of these events. This is fastest if the events are sorted by client.
    pub fn of_events<'a>(events: impl IntoIterator<Item = &'a PricedEvent<'a>>) -> Self {
        fn row<'a>(PricedEvent { event, day, .. }: &PricedEvent<'a>) -> (NaiveDate, &'a str, &'a str, &'a str) {
            (*day, &event.service, &event.operation, &event.model)
        }
        let mut events: Vec<&PricedEvent<'_>> = events.into_iter().collect();
        events.sort_by(|left, right| left.event.client_id.cmp(&right.event.client_id));
        let mut new = Self::default();
        for client_events in events.chunk_by_mut(|left, right| left.event.client_id == right.event.client_id) {
            client_events.sort_unstable_by(|left, right| row(left).cmp(&row(right)));
            for row_events in client_events.chunk_by(|left, right| row(left) == row(right)) {
                let PricedEvent { event, day, .. } = row_events[0];
                let sums: Sums = row_events.iter().map(|priced| Sums::of(&priced.event.measures, priced.charge)).sum();
                let (client, month) = (event.client_id.clone(), Month::of(*day));
                match new.months.last_mut() {
                    Some(((of, last), total)) if *of == client && *last == month => *total += sums,
                    _ => new.months.push(((client.clone(), month), sums)),
                }
                let key = (client, *day, event.service.clone(), event.operation.clone(), event.model.clone());
                let mut measures = BTreeMap::<Arc<str>, Total>::new();
                for (name, quantity) in row_events.iter().flat_map(|priced| priced.event.measures.summed()) {
                    *measures.entry(name).or_default() += quantity;
                }
                new.day_measures.extend(measures.into_iter().map(|(name, total)| ((key.clone(), name), total)));
                new.days.push((key, sums));
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decimal::Decimal;
    use crate::event::{EventId, Labels, UsageEvent};
    use crate::measures::OtherMeasures;

    proptest::proptest! {
        /// Compares the sums of services with the sums of their operations, and the operations with a sorted list.
        #[test]
        fn a_range_keeps_all_services_and_the_operations_with_the_highest_cost(
            costs in proptest::collection::btree_map((0u8..3, 0u8..30), -2i64..5, 0..40), max in 0usize..12
        ) {
            let mut rows: Vec<OperationSums> = costs.iter().map(|((service, operation), cost)| OperationSums {
                service: format!("s{service}"),
                operation: format!("o{operation:02}"),
                sums: Sums { request_count: 1, cost: Total::from_scaled((*cost).into()), ..Sums::default() },
            }).collect();
            let mut range = RangeSums::new(max);
            rows.iter().cloned().for_each(|row| range.add_operation(row));
            for (service, of_service) in &range.services {
                let expected: Sums = rows.iter().filter(|row| row.service == *service).map(|row| row.sums).sum();
                proptest::prop_assert_eq!(*of_service, expected);
            }
            let all: Sums = rows.iter().map(|row| row.sums).sum();
            proptest::prop_assert_eq!(range.services.values().copied().sum::<Sums>(), all);
            proptest::prop_assert!(range.operations.len() <= 2 * max);
            // The rows are sorted by name, and the sort is stable.
            rows.sort_by_key(|row| std::cmp::Reverse(row.sums.cost));
            rows.truncate(max);
            proptest::prop_assert_eq!(range.take_operations(), rows);
        }

        /// Compares the sums of all events with those of events added one by one.
        #[test]
        fn all_events_at_once_have_the_same_sums_as_one_by_one(
            rows in proptest::collection::vec((0u8..3, 1u32..4, 10u32..13, 0u8..2, 0u8..2, 0u8..2, 0i64..1_000), 0..60),
            measures in proptest::collection::vec(0u8..4, 60),
        ) {
            let others = |kind: u8, quantity: i64| -> OtherMeasures {
                let names = [&[][..], &["pages"], &["images"], &["images", "pages"]][usize::from(kind)];
                names.iter().map(|name| ((*name).into(), Decimal::from_scaled(quantity.into()))).collect()
            };
            let events: Vec<UsageEvent> = rows.iter().zip(&measures).map(|(row, kind)| UsageEvent {
                client_id: format!("c{}", row.0).into(),
                service: format!("s{}", row.3).into(),
                operation: format!("o{}", row.4).into(),
                model: format!("m{}", row.5).into(),
                service_tier: String::new(),
                labels: Labels::new(),
                measures: Measures {
                    units: Decimal::from_scaled(row.6.into()), input_tokens: row.6, others: others(*kind, row.6 + 1),
                    reported_cost: (row.6 % 3 > 0).then(|| Decimal::from_scaled((row.6 / 500).into())),
                    ..Measures::default()
                },
                event_time: chrono::DateTime::UNIX_EPOCH,
                idempotency_key: "k".into(),
                subject: String::new(),
                external_id: String::new(),
                metadata: None,
            }).collect();
            let priced: Vec<PricedEvent<'_>> = events.iter().zip(&rows).map(|(event, row)| PricedEvent {
                event,
                id: EventId::new(event.event_time),
                day: NaiveDate::from_ymd_opt(2026, row.2, row.1).unwrap(),
                charge: Charge::Priced { charge: Decimal::from_scaled(7 * i128::from(row.6)), price_id: 1 },
                tiers: None,
            }).collect();
            let mut one_by_one = Deltas::default();
            for PricedEvent { event, day, charge, .. } in &priced {
                let (client, service) = (event.client_id.clone(), event.service.clone());
                let key = (client, *day, service, event.operation.clone(), event.model.clone());
                for (name, quantity) in event.measures.summed() {
                    *one_by_one.day_measures.entry((key.clone(), name)).or_default() += quantity;
                }
                one_by_one.add(key, Sums::of(&event.measures, *charge));
            }
            let Deltas { months, days, day_measures, .. } = one_by_one;
            let one_by_one = NewSums {
                months: months.into_iter().collect(),
                days: days.into_iter().collect(),
                day_measures: day_measures.into_iter().collect(),
            };
            proptest::prop_assert_eq!(NewSums::of_events(&priced), one_by_one);
        }
    }
}

//! The metrics, in Prometheus's [text format] 0.0.4.
//!
//! Each is there from the start, so that a rule can rely on it: a reason that nothing was refused for
//! yet has a zero.
//!
//! [text format]: https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};
use std::time::{Duration, UNIX_EPOCH};

use crate::server::Server;
use crate::stats::Histogram;
use crate::wire::Code;

/// The media type of [`text`].
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Returns all metrics.
pub(crate) fn text(server: &Server) -> String {
    let mut text = Text(String::with_capacity(8192));
    text.write(server).expect("a String takes everything");
    text.0
}

struct Text(String);

impl Text {
    fn write(&mut self, server: &Server) -> fmt::Result {
        let numbers = server.numbers();
        let stats = &server.stats;
        let started = server.started_at().duration_since(UNIX_EPOCH);

        self.family(
            "build_info",
            "gauge",
            "The version of the server; always 1.",
        )?;
        let version = concat!(r#"{version=""#, env!("CARGO_PKG_VERSION"), r#""}"#);
        self.sample("build_info", version, 1)?;

        self.family(
            "start_time_seconds",
            "gauge",
            "When the server was started, in seconds since 1970.",
        )?;
        let started = started.unwrap_or_default();
        self.sample("start_time_seconds", "", started.as_secs_f64())?;

        self.family(
            "pool_ports",
            "gauge",
            "Ports of the pool by state. resting: not leased, but in use when last probed.",
        )?;
        self.sample("pool_ports", r#"{state="free"}"#, numbers.free)?;
        self.sample("pool_ports", r#"{state="leased"}"#, numbers.leased)?;
        self.sample("pool_ports", r#"{state="resting"}"#, numbers.resting)?;

        self.family(
            "owners",
            "gauge",
            "Processes and connections that own leases.",
        )?;
        self.sample("owners", "", numbers.owners)?;
        self.family(
            "clients",
            "gauge",
            "Open connections, those over HTTP aside.",
        )?;
        self.sample("clients", "", numbers.clients)?;
        self.family("waiting_requests", "gauge", "Requests that wait for ports.")?;
        self.sample("waiting_requests", "", numbers.waiting)?;

        self.family("grants_total", "counter", "Ports leased.")?;
        self.sample("grants_total", "", numbers.granted)?;

        self.family(
            "refusals_total",
            "counter",
            "Requests refused, by the error code of the extended protocol.",
        )?;
        let mut refused = BTreeMap::from(Code::REFUSALS.map(|code| (code.name(), 0)));
        refused.extend(numbers.refused);
        for (reason, count) in refused {
            self.sample("refusals_total", &format!("{{reason=\"{reason}\"}}"), count)?;
        }

        self.family(
            "leases_ended_total",
            "counter",
            "Leases that ended. released: given back; reclaimed: the owner exited; expired: their \
             time was over.",
        )?;
        self.sample(
            "leases_ended_total",
            r#"{cause="released"}"#,
            numbers.released,
        )?;
        self.sample(
            "leases_ended_total",
            r#"{cause="reclaimed"}"#,
            numbers.reclaimed,
        )?;
        self.sample(
            "leases_ended_total",
            r#"{cause="expired"}"#,
            numbers.expired,
        )?;

        self.family(
            "client_errors_total",
            "counter",
            "Requests that were not understood.",
        )?;
        self.sample("client_errors_total", "", numbers.client_errors)?;

        self.family(
            "state_file_behind",
            "gauge",
            "1 while the state file cannot be written, so that a crash would lose leases.",
        )?;
        self.sample("state_file_behind", "", u8::from(server.state_is_behind()))?;

        self.histogram(
            "request_duration_seconds",
            "From the first byte of a request to its answer, the wait for ports that a request asked \
             for included.",
            &stats.latency,
        )?;
        self.histogram(
            "reclaim_delay_seconds",
            "From the server's learning of an owner's exit to its ports being free, for each owner; \
             for those that have to be polled, from when they were last seen alive.",
            &stats.reclaim_delay,
        )
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) -> fmt::Result {
        writeln!(self.0, "# HELP portserver_{name} {help}")?;
        writeln!(self.0, "# TYPE portserver_{name} {kind}")
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) -> fmt::Result {
        writeln!(self.0, "portserver_{name}{labels} {value}")
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) -> fmt::Result {
        self.family(name, "histogram", help)?;
        let mut count = 0;
        for (index, more) in histogram.counts.iter().enumerate() {
            count += more;
            match Histogram::BOUNDS.get(index) {
                Some(&bound) => {
                    let bound = Duration::from_micros(bound).as_secs_f64();
                    writeln!(self.0, "portserver_{name}_bucket{{le=\"{bound}\"}} {count}")?;
                }
                None => writeln!(self.0, "portserver_{name}_bucket{{le=\"+Inf\"}} {count}")?,
            }
        }
        writeln!(
            self.0,
            "portserver_{name}_sum {}",
            histogram.sum.as_secs_f64()
        )?;
        writeln!(self.0, "portserver_{name}_count {count}")
    }
}

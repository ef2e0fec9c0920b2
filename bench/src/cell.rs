//! A job, in a process with a network and processes of its own.
//!
//! Whatever a job starts, and whatever ports it binds, is gone when its process is: the kernel ends
//! both namespaces with it.

use std::env;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::process::{self, Command, Stdio};
use std::thread;
use std::time::Duration;

use portpicker_testing::{Exit, PID_NAMESPACE, namespace_wrapper, network};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::plan::{Effort, Job, Work};
use crate::report::{Collisions, Thefts};
use crate::tools::{Places, Tool};
use crate::{collisions, cost, servers, thefts};

/// No job takes so long unless something hangs.
const DEADLINE: Duration = Duration::from_secs(600);

/// What a job is told.
#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    job: Job,
    effort: Effort,
    places: Places,
}

/// What a job has found.
#[derive(Debug, Serialize, Deserialize)]
pub enum Outcome {
    Collisions(Collisions),
    /// For each delay, for each server of `How::ALL`.
    Thefts(Vec<[Option<Thefts>; 2]>),
    /// In µs, `None` for each pick that found no port.
    Picks(Vec<Option<f64>>),
    Server(servers::Found),
}

/// Returns why jobs cannot run here, if they cannot.
pub fn obstacle() -> Option<&'static str> {
    namespace_wrapper().err()
}

/// Runs `job` in a process of its own.
pub fn run(job: &Job, effort: &Effort, places: &Places) -> Result<Outcome> {
    let orders = serde_json::to_string(&Orders {
        job: job.clone(),
        effort: effort.clone(),
        places: places.clone(),
    })?;
    let wrapper = namespace_wrapper()?;
    // Files, so that nobody has to read while it runs.
    let (mut output, mut complaints) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut process = Command::new(wrapper[0])
        .args(&wrapper[1..])
        .args(PID_NAMESPACE)
        .arg("--")
        .arg(env::current_exe()?)
        .arg("cell")
        .arg(orders)
        // Never written to: its end is that of this process.
        .stdin(Stdio::piped())
        .stdout(output.try_clone()?)
        .stderr(complaints.try_clone()?)
        .spawn()
        .map_err(|err| format!("{}: {err}", wrapper[0]))?;
    let in_time = Exit::of(process.id()).happens_within(DEADLINE);
    if !in_time {
        process.kill()?;
    }
    let status = process.wait()?;
    if !in_time {
        return Err(format!("no result after {} s", DEADLINE.as_secs()).into());
    }
    if !status.success() {
        let complaints = read_from_start(&mut complaints)?;
        return Err(complaints.trim().to_owned().into());
    }
    Ok(serde_json::from_str(&read_from_start(&mut output)?)?)
}

fn read_from_start(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Does what `orders` say, in this process, whose namespaces are its own.
pub fn obey(orders: &str) -> Result<()> {
    let Orders {
        job,
        effort,
        places,
    } = serde_json::from_str(orders)?;
    end_with_input();
    let tool = Tool::find(&job.tool).ok_or_else(|| format!("there is no tool `{}`", job.tool))?;
    network::set_up();
    raise_descriptor_limit()?;
    let outcome = match job.work {
        Work::Collisions { processes } => {
            Outcome::Collisions(collisions::measure(tool, processes, &effort, &places)?)
        }
        Work::Thefts => Outcome::Thefts(thefts::measure(tool, &effort, &places)?),
        Work::Cost => Outcome::Picks(cost::measure(tool, &effort, &places)?),
        Work::Crowded { taken } => {
            Outcome::Picks(cost::measure_crowded(tool, taken, &effort, &places)?)
        }
        Work::Servers { state } => {
            Outcome::Server(servers::measure(tool, state, &effort, &places)?)
        }
    };
    serde_json::to_writer(io::stdout().lock(), &outcome)?;
    io::stdout().flush()?;
    Ok(())
}

/// Ends this process, and with it everything in its namespaces, when its input ends: then whoever
/// started it is gone, and nobody waits for the outcome.
fn end_with_input() {
    thread::spawn(|| {
        // An error is an end as well.
        _ = io::stdin().read_to_end(&mut Vec::new());
        process::exit(1);
    });
}

/// Allows this process, and those that it starts, as many descriptors as they may have.
fn raise_descriptor_limit() -> io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    Ok(setrlimit(Resource::Nofile, limit)?)
}

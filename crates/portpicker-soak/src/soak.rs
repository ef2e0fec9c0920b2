//! A soak from its beginning to its end.

mod trouble;

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use portpicker_testing::{PID_NAMESPACE, namespace_wrapper, network};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use self::trouble::TROUBLES;
use crate::crew::Crew;
use crate::ending;
use crate::event::{Event, Id};
use crate::kinds::{KINDS, command, is_bystander};
use crate::oracle::Oracle;
use crate::place::{self, EPHEMERAL};
use crate::random::Random;
use crate::report::Report;
use crate::server::{Life, Server};

/// Errors are for people only: sentences of many origins.
pub type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// How a soak is to be.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How long, in minutes; fractions are understood
    #[arg(long = "minutes", value_name = "MINUTES", default_value = "10", value_parser = minutes)]
    pub(crate) length: Duration,
    /// File to write the report to [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Python interpreter that has the package portpicker [default: no Python]
    #[arg(long, value_name = "FILE")]
    pub(crate) python: Option<PathBuf>,
    /// How many processes pick at a time
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = actors)]
    pub(crate) actors: usize,
    /// Begin the random numbers here [default: by the time]
    #[arg(long, default_value_t = some_seed(), hide_default_value = true)]
    pub(crate) seed: u64,
}

/// The bounds are what a day's tables, and a small machine, can take.
fn minutes(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(minutes) if (0.1..=1440.0).contains(&minutes) => {
            Ok(Duration::from_secs_f64(minutes * 60.0))
        }
        _ => Err("not a number from 0.1 to 1440".to_owned()),
    }
}

fn actors(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=200) => Ok(number),
        _ => Err("not a number from 1 to 200".to_owned()),
    }
}

fn some_seed() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(1, |since| since.as_millis() as u64)
}

/// Returns the command line below which a soak has its namespaces, or why there is none.
pub fn wrapper() -> Result<Vec<&'static str>, String> {
    let wrapper = [namespace_wrapper()?, PID_NAMESPACE].concat();
    let output = Command::new(wrapper[0])
        .args(&wrapper[1..])
        .arg("true")
        .output()
        .map_err(|err| err.to_string())?;
    if output.status.success() {
        return Ok(wrapper);
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    Err(format!("no pid namespace: {}", reason.trim()))
}

/// Makes the namespaces, and has the soak in them.
pub fn outside(options: &Options) -> Result<ExitCode> {
    // Whatever is wrong with the arguments is better known now than at the end.
    if let Some(report) = &options.report {
        File::create(report)
            .map_err(|err| format!("cannot write `{}`: {err}", report.display()))?;
    }
    if let Some(python) = &options.python {
        try_python(python).map_err(|err| format!("`{}`: {err}", python.display()))?;
    }
    let wrapper = wrapper()?;
    let folder = tempfile::Builder::new().prefix("soak-").tempdir()?;
    // It ends with this process, by the end of its input; `wait` would close that.
    let mut child = Command::new(wrapper[0])
        .args(&wrapper[1..])
        .arg("--")
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg("--inside")
        .arg(folder.path())
        .stdin(Stdio::piped())
        .spawn()?;
    let input = child.stdin.take();
    let status = child.wait()?;
    drop(input);
    match status.code() {
        Some(code) => Ok(ExitCode::from(code as u8)),
        None => Err(format!("it was ended: {status}").into()),
    }
}

/// Finds out whether an interpreter has the package, and not Google's of the same name.
fn try_python(python: &Path) -> Result<(), String> {
    let output = Command::new(python)
        .args(["-c", "import portpicker; portpicker.leases"])
        .output()
        .map_err(|err| err.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last = stderr.lines().last().unwrap_or("it fails");
    Err(format!("this project's package is not there: {last}"))
}

/// What runs.
struct Soak {
    options: Options,
    random: Random,
    crew: Crew,
    shaken: Server,
    steady: Server,
    oracle: Arc<Mutex<Oracle>>,
    /// Keepers, and whose they are.
    keepers: Receiver<(Id, u32, Vec<u16>)>,
    known_keepers: Vec<(Id, u32, Vec<u16>)>,
    stopped: Vec<(Instant, Id)>,
    idle: Vec<Id>,
    /// Until when the disk is full, and whether a server is to be killed then.
    full_until: Option<(Instant, bool)>,
    /// How many things went wrong so far.
    troubles: usize,
}

/// Has the soak, in namespaces that are its own.
pub fn inside(options: &Options, folder: &Path) -> Result<ExitCode> {
    end_with_input(folder.to_owned());
    network::set_up();
    network::set_ephemeral_range(EPHEMERAL.0..=EPHEMERAL.1);
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )?;
    let bin = folder.join("bin");
    fs::create_dir(&bin)?;
    for name in ["soak", "portpicker", "portserver"] {
        symlink(std::env::current_exe()?, bin.join(name))?;
    }
    fs::write(bin.join("actor.py"), include_str!("actor.py"))?;
    let disk = disk(folder);
    fs::create_dir(&disk)?;
    let mount_at =
        |path: &Path, options| mount("soak", path, "tmpfs", MountFlags::empty(), Some(options));
    mount_at(&disk, c"size=1m")?;
    // Where locks are files, they are the soak's own, too.
    mount_at(Path::new("/dev/shm"), c"mode=1777")?;

    let own = ending::own_descriptors()?;
    let (reader, writer) = io::pipe()?;
    let crew = Crew::new(folder, writer)?;
    let oracle = Arc::<Mutex<Oracle>>::default();
    let (sender, keepers) = channel();
    let listener = {
        let (oracle, roll) = (Arc::clone(&oracle), Arc::clone(&crew.roll));
        thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                let parsed = Event::parse(&line);
                let mut oracle = oracle.lock().expect("nobody panics with it");
                match parsed {
                    Some((id, Event::Keeper(pid, ports))) => _ = sender.send((id, pid, ports)),
                    Some((id, event)) => oracle.take(id, event, &|id| roll.actor(id)),
                    None => oracle.violation(None, format!("`{line}` is not an event")),
                }
            }
        })
    };
    let start = |place| Server::start(&crew, place, Life::ORDINARY);
    let (shaken, steady) = (start(place::Server::Shaken)?, start(place::Server::Steady)?);
    let mut report = Report::new(options);
    report.size(&steady)?;
    let mut soak = Soak {
        options: options.clone(),
        random: Random::new(options.seed),
        crew,
        shaken,
        steady,
        oracle,
        keepers,
        known_keepers: Vec::new(),
        stopped: Vec::new(),
        idle: Vec::new(),
        full_until: None,
        troubles: 0,
    };
    let result = soak.run(&mut report);
    soak.end(result, report, listener, own)
}

/// Returns where the state files are: a file system of a mebibyte.
pub(crate) fn disk(folder: &Path) -> PathBuf {
    folder.join("disk")
}

/// Returns the kinds of actors that should have picked, and never have.
fn kinds_without_picks(oracle: &Oracle, options: &Options) -> Vec<&'static str> {
    let picks = |kind: &str| oracle.picks.get(kind).map_or(0, |picks| picks.succeeded);
    KINDS
        .into_iter()
        .map(|(kind, _)| kind)
        .filter(|kind| !is_bystander(kind))
        .filter(|kind| *kind != "python" || options.python.is_some())
        .filter(|kind| picks(kind) == 0)
        .collect()
}

/// Ends this process, and with it all others of its namespace, when its standard input ends: whoever
/// would have removed the folder is gone.
fn end_with_input(folder: PathBuf) {
    thread::spawn(move || {
        _ = io::copy(&mut io::stdin(), &mut io::sink());
        _ = unmount(disk(&folder), UnmountFlags::DETACH);
        _ = fs::remove_dir_all(&folder);
        std::process::abort();
    });
}

impl Soak {
    /// Lets everything go wrong until the time is over.
    fn run(&mut self, report: &mut Report) -> Result<()> {
        let begin = Instant::now();
        let end = begin + self.options.length;
        // First everybody is to have picked, also on a busy machine.
        let mut next_trouble = None;
        let latest_trouble = begin + self.options.length / 4;
        let mut told = 0;
        let mut next_line = begin + Duration::from_secs(10);
        while Instant::now() < end {
            self.reap()?;
            while self.crew.len() < self.options.actors + self.idle.len() {
                let kind = self.next_kind();
                self.start(kind)?;
            }
            let now = Instant::now();
            match next_trouble {
                None if now >= latest_trouble || self.all_have_picked() => next_trouble = Some(now),
                Some(next) if now >= next => {
                    let trouble = match TROUBLES.get(self.troubles) {
                        Some((trouble, _)) => *trouble,
                        None => self.random.weighted(&TROUBLES),
                    };
                    self.troubles += 1;
                    trouble(self)?;
                    next_trouble = Some(Instant::now() + self.random.millis(20, 500));
                }
                _ => {}
            }
            if now >= next_line {
                report.size(&self.steady)?;
                self.progress(begin.elapsed(), &mut told);
                next_line += Duration::from_secs(10);
            }
            if let Some((until, kill)) = self.full_until
                && now >= until
            {
                self.free_the_disk(kill)?;
            }
            let due = |(at, _): &(Instant, Id)| *at <= now;
            for (_, id) in self.stopped.extract_if(.., |stopped| due(stopped)) {
                self.crew.signal(id, Signal::CONT);
            }
            match self.keepers.recv_timeout(Duration::from_millis(10)) {
                Ok(keeper) => self.known_keepers.push(keeper),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err("the oracle is gone".into()),
            }
        }
        match self.full_until {
            Some(_) => self.free_the_disk(false),
            None => Ok(()),
        }
    }

    /// Tells whether an actor of each kind that picks has succeeded.
    fn all_have_picked(&self) -> bool {
        let oracle = self.oracle.lock().expect("nobody panics with it");
        kinds_without_picks(&oracle, &self.options).is_empty()
    }

    fn progress(&self, elapsed: Duration, told: &mut usize) {
        let oracle = self.oracle.lock().expect("nobody panics with it");
        let picks: u64 = oracle.picks.values().map(|picks| picks.succeeded).sum();
        let exempt: u64 = oracle.exempt.values().sum();
        _ = writeln!(
            io::stderr(),
            "{:>5} s: {picks} picks, {exempt} exempt, {} violations",
            elapsed.as_secs(),
            oracle.violation_count
        );
        for violation in &oracle.violations[*told..] {
            _ = writeln!(io::stderr(), "         {}", violation.what);
            for line in &violation.trace {
                _ = writeln!(io::stderr(), "         {line}");
            }
        }
        *told = oracle.violations.len();
    }

    fn reap(&mut self) -> Result<()> {
        self.crew.reap();
        for server in [&self.shaken, &self.steady] {
            if server.has_exited() {
                let name = server.place.name();
                return Err(
                    format!("the server `{name}` has ended: {}", server.last_lines()).into(),
                );
            }
        }
        Ok(())
    }

    /// Returns the kind of the next actor: each kind once, and then any.
    fn next_kind(&mut self) -> &'static str {
        let started = self.crew.started.values().sum::<u64>() as usize;
        let kind = match KINDS.get(started) {
            Some((kind, _)) => kind,
            None => self.random.weighted(&KINDS),
        };
        let is_there = |kind| self.crew.living().iter().any(|(_, it)| *it == kind);
        match kind {
            "python" if self.options.python.is_none() => "library",
            kind if is_bystander(kind) && is_there(kind) => "library",
            kind => kind,
        }
    }

    fn start(&mut self, kind: &'static str) -> Result<(Id, u32)> {
        let python = self.options.python.as_deref();
        let mut command = command(kind, &self.crew, &mut self.random, python);
        let started = self.crew.start(kind, &mut command);
        started.map_err(|err| format!("cannot start `{kind}`: {err}").into())
    }

    /// Ends all, and looks at what is left.
    fn end(
        mut self,
        result: Result<()>,
        mut report: Report,
        listener: JoinHandle<()>,
        own: usize,
    ) -> Result<ExitCode> {
        let mut wrong = Vec::new();
        wrong.extend(result.err().map(|err| err.to_string()));
        for (_, id) in std::mem::take(&mut self.stopped) {
            self.crew.signal(id, Signal::CONT);
        }
        // There is none, unless something was wrong before the disk was freed.
        _ = fs::remove_file(self.ballast());
        let Self {
            mut crew,
            shaken,
            steady,
            oracle,
            idle,
            ..
        } = self;
        ending::end(
            &mut crew,
            vec![shaken, steady],
            &idle,
            &mut report,
            &mut wrong,
        );
        let started = std::mem::take(&mut crew.started);
        let log = crew.log.clone();
        drop(crew);
        listener.join().expect("the listener does not panic");
        let left = ending::own_descriptors()?;
        if left > own {
            wrong.push(format!("the soak had {own} descriptors, and has {left}"));
        }
        let oracle = Arc::into_inner(oracle).expect("the listener has ended");
        let mut oracle = oracle.into_inner().expect("nobody panicked with it");
        for kind in kinds_without_picks(&oracle, &self.options) {
            wrong.push(format!("no `{kind}` was ever given a port"));
        }
        for what in wrong {
            oracle.violation(None, what);
        }
        let stderr = fs::read_to_string(log).unwrap_or_default();
        report.write(&oracle, &started, &stderr)?;
        Ok(ExitCode::from(u8::from(oracle.violation_count > 0)))
    }
}

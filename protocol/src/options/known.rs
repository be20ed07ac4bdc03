//! Every option that there is.

use super::{
    APPLICATION, ASG, COMMAND, CONNECTIONS, ENVIRONMENT, HEALTH, INSTANCE, JVM, Kind, LOADBALANCER,
    PHP, PLACEMENT, PLATFORM, PROCESS, PROXY, PYTHON, PYTHON_SERVER, RELEASE, SITE, SPLIT,
    SPLITTING, UPDATE, named,
};

/// What a change of an option does to what runs (EB guide, "command-options-general").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing is interrupted.
    Nothing,
    /// The load balancer checks otherwise. What is well by the present check has to pass the new one first;
    /// else nothing changes.
    Check,
    /// Instances restart their processes, by the deployment policy.
    Restart,
    /// New instances take the place of those that run, by the options of [`UPDATE`].
    Replace,
    /// It cannot change after creation.
    Fixed,
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// Its namespace.
    pub namespace: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What is in force when nothing is set; empty for none.
    pub default: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// What a change does.
    pub change: Change,
    /// What it is for, in a sentence or two.
    pub about: &'static str,
}

pub(super) const fn option(
    namespace: &'static str,
    name: &'static str,
    default: &'static str,
    kind: Kind,
    change: Change,
    about: &'static str,
) -> OptionSpec {
    OptionSpec {
        namespace,
        name,
        default,
        kind,
        change,
        about,
    }
}

/// Every option that Beanpole knows. Defaults are EB's where a comment does not say otherwise.
pub const KNOWN: &[OptionSpec] = &[
    option(
        COMMAND,
        "DeploymentPolicy",
        "",
        Kind::OneOf(&[
            "AllAtOnce",
            "Rolling",
            "RollingWithAdditionalBatch",
            "Immutable",
            "TrafficSplitting",
        ]),
        Change::Nothing,
        "How a new release reaches the instances. Without it: Rolling when BatchSize is below 100 %, else AllAtOnce.",
    ),
    option(
        COMMAND,
        "BatchSizeType",
        "Percentage",
        Kind::OneOf(&["Percentage", "Fixed"]),
        Change::Nothing,
        "Whether BatchSize is a share of the instances or a number of them.",
    ),
    // EB's default is 100; whoever wants every instance to go at once asks for AllAtOnce.
    option(
        COMMAND,
        "BatchSize",
        "30",
        Kind::Number(1, 10_000),
        Change::Nothing,
        "How many instances change together in a rolling deployment.",
    ),
    option(
        COMMAND,
        "Timeout",
        "600",
        Kind::Number(1, 3_600),
        Change::Nothing,
        "Seconds that preparing a release on a host may take, and what runs once for a deployment. Also StartTimeout, where that is not set.",
    ),
    option(
        COMMAND,
        "IgnoreHealthCheck",
        "false",
        Kind::Bool,
        Change::Nothing,
        "Go on to the next batch when instances start but do not become healthy in time.",
    ),
    option(
        HEALTH,
        "HealthCheckSuccessThreshold",
        "Ok",
        Kind::OneOf(&["Ok", "Warning", "Degraded", "Severe"]),
        Change::Nothing,
        "How bad a started instance may be for a deployment to go on. An instance passes its checks, which Ok, Warning and Degraded ask for, or does not: Severe is like IgnoreHealthCheck.",
    ),
    option(
        SPLITTING,
        "NewVersionPercent",
        "10",
        Kind::Number(1, 100),
        Change::Nothing,
        "The share of the requests, in per cent, that a new release gets first under TrafficSplitting.",
    ),
    // EB: at least 3.
    option(
        SPLITTING,
        "EvaluationTime",
        "5",
        Kind::Number(1, 600),
        Change::Nothing,
        "Minutes that a new release has its share before it gets all requests. Of every step that has no time of its own.",
    ),
    option(
        SPLIT,
        "Steps",
        "",
        Kind::Steps,
        Change::Nothing,
        "Shares one after the other, each with the time that it lasts. Without them: NewVersionPercent for EvaluationTime.",
    ),
    option(
        SPLIT,
        "Guard",
        "true",
        Kind::Bool,
        Change::Nothing,
        "Compare the new release with the one before over the requests of the same time, and go back by itself when it is worse.",
    ),
    option(
        SPLIT,
        "GuardErrors",
        "1",
        Kind::Number(0, 100),
        Change::Nothing,
        "By how many points the new release's share of failed requests has to be higher for the guard to go back.",
    ),
    option(
        SPLIT,
        "GuardLatency",
        "50",
        Kind::Number(0, 10_000),
        Change::Nothing,
        "By how many per cent the new release's 95th percentile of latency has to be higher for the guard to go back. 0: latency is not compared.",
    ),
    option(
        SPLIT,
        "Sticky",
        "none",
        Kind::Sticky,
        Change::Nothing,
        "What keeps a client on one side of a split: nothing, a cookie, or the value of a header of its requests.",
    ),
    option(
        ENVIRONMENT,
        "EnvironmentType",
        "LoadBalanced",
        Kind::OneOf(&["LoadBalanced", "SingleInstance"]),
        Change::Nothing,
        "Many instances behind the load balancer, or just one.",
    ),
    option(
        ENVIRONMENT,
        "LoadBalancerType",
        "application",
        Kind::OneOf(&["application", "classic", "network"]),
        Change::Fixed,
        "What the load balancer takes: requests by HTTP (`application`, which `classic` is another word for), or connections to TCP ports (`network`). Fixed when the environment is created.",
    ),
    option(
        ASG,
        "MinSize",
        "1",
        Kind::Number(0, 10_000),
        Change::Nothing,
        "The number of instances. 0: one, and none after a time without requests (`IdleTime` of `beanpole:proxy`), until the next one.",
    ),
    // EB: false, which interrupts the service; its console and its command line set true.
    option(
        UPDATE,
        "RollingUpdateEnabled",
        "true",
        Kind::Bool,
        Change::Nothing,
        "Replace instances batch after batch when settings change that those that run cannot take on. `false`: all at once, in place, which interrupts the service.",
    ),
    // EB: Time; its console and its command line set Health.
    option(
        UPDATE,
        "RollingUpdateType",
        "Health",
        Kind::OneOf(&["Time", "Health", "Immutable"]),
        Change::Nothing,
        "When old instances leave: as soon as the new ones of a batch are well, when they also ran for PauseTime, or when a whole new set is well.",
    ),
    option(
        UPDATE,
        "MaxBatchSize",
        "",
        Kind::Number(1, 10_000),
        Change::Nothing,
        "Instances that are replaced together. Without it: a third of them, rounded up.",
    ),
    option(
        UPDATE,
        "MinInstancesInService",
        "",
        Kind::Number(0, 9_999),
        Change::Nothing,
        "Instances that serve at any time while others are replaced. New ones come before old ones leave, so that it matters only where a host has no room for both.",
    ),
    option(
        UPDATE,
        "PauseTime",
        "",
        Kind::Duration(0, 3_600),
        Change::Nothing,
        "How long new instances have to run without a restart before old ones leave, under Time.",
    ),
    option(
        UPDATE,
        "Timeout",
        "",
        Kind::Duration(300, 3_600),
        Change::Nothing,
        "How long the new instances of a batch have to get well. Without it: StartTimeout.",
    ),
    // On EB, the port of the instance's own proxy.
    option(
        PROCESS,
        "Port",
        "80",
        Kind::Number(1, 65_535),
        Change::Nothing,
        "Means nothing here: an instance has ports of its own, and its web process listens on `$PORT`.",
    ),
    // EB: 20 s. Own hosts answer in milliseconds; a long-running request still gets its 20 s.
    option(
        PROCESS,
        "DeregistrationDelay",
        "20",
        Kind::Number(0, 3_600),
        Change::Nothing,
        "Seconds that an instance leaving the load balancer has to finish its requests.",
    ),
    option(
        PROCESS,
        "HealthCheckPath",
        "/",
        Kind::Path,
        Change::Check,
        "What the health check asks for. With an empty HealthCheckPath a TCP connection is enough.",
    ),
    // EB: 15 s, meant for load balancers far away. Own hosts are near: a deployment need not wait.
    option(
        PROCESS,
        "HealthCheckInterval",
        "1",
        Kind::Number(1, 300),
        Change::Nothing,
        "Seconds from one health check to the next. With 1, what a deployment waits for is asked every 50 ms.",
    ),
    option(
        PROCESS,
        "HealthCheckTimeout",
        "5",
        Kind::Number(1, 60),
        Change::Check,
        "Seconds that the answer to a health check may take.",
    ),
    option(
        PROCESS,
        "HealthyThresholdCount",
        "2",
        Kind::Number(1, 10),
        Change::Nothing,
        "Good checks in a row after which an instance gets traffic.",
    ),
    option(
        PROCESS,
        "UnhealthyThresholdCount",
        "3",
        Kind::Number(1, 10),
        Change::Nothing,
        "Bad checks in a row after which it gets none.",
    ),
    option(
        PROCESS,
        "MatcherHTTPCode",
        "200-399",
        Kind::Statuses,
        Change::Check,
        "The statuses of a good check.",
    ),
    option(
        PROCESS,
        "Protocol",
        "HTTP",
        Kind::OneOf(&["HTTP", "TCP", "GRPC"]),
        Change::Check,
        "HTTP asks for HealthCheckPath, TCP only connects, GRPC asks grpc.health.v1.Health/Check over HTTP/2 without TLS.",
    ),
    option(
        PROCESS,
        "StickinessEnabled",
        "false",
        Kind::Bool,
        Change::Nothing,
        "Keep a client at the instance that it came to first, as long as that one serves; by a cookie, unless StickyBy says otherwise.",
    ),
    option(
        PROCESS,
        "StickinessLBCookieDuration",
        "86400",
        Kind::Number(1, 604_800),
        Change::Nothing,
        "Seconds that a client keeps that cookie.",
    ),
    option(
        PROCESS,
        "StickinessType",
        "lb_cookie",
        Kind::OneOf(&["lb_cookie", "source_ip"]),
        Change::Nothing,
        "A cookie of the load balancer, or the client's address, as always where the load balancer is a network one; beanpole:proxy:StickyBy knows more.",
    ),
    option(
        APPLICATION,
        "Application Healthcheck URL",
        "",
        Kind::Path,
        Change::Check,
        "The older name of HealthCheckPath; HealthCheckPath wins.",
    ),
    option(
        PLATFORM,
        "RuntimeVersion",
        "",
        Kind::Text,
        Change::Restart,
        "The version of the runtime, such as 18, 3.11 or 17, of those that a host has side by side. Without it: what the bundle asks for, else what the host's PATH has.",
    ),
    // EB's default is `application`, which is what is taken where nothing is found.
    option(
        PYTHON,
        "WSGIPath",
        "",
        Kind::Text,
        Change::Restart,
        "The module, or module:callable, that is run when there is no Procfile. Without it: Django's wsgi.py, or what app.py, main.py or the like makes, else application.",
    ),
    option(
        PYTHON_SERVER,
        "Interface",
        "Auto",
        Kind::OneOf(&["Auto", "WSGI", "ASGI"]),
        Change::Restart,
        "What the application speaks: gunicorn runs WSGI, uvicorn runs ASGI. Auto: ASGI for FastAPI, Starlette, Quart, Litestar and modules called asgi.",
    ),
    option(
        PYTHON,
        "NumProcesses",
        "1",
        Kind::Number(1, 256),
        Change::Restart,
        "Worker processes of gunicorn or uvicorn per instance.",
    ),
    option(
        PYTHON,
        "NumThreads",
        "15",
        Kind::Number(1, 256),
        Change::Restart,
        "gunicorn's threads per worker process.",
    ),
    option(
        PHP,
        "document_root",
        "/",
        Kind::Text,
        Change::Restart,
        "The directory of the bundle that is served, such as /public.",
    ),
    option(
        PHP,
        "memory_limit",
        "256M",
        Kind::Text,
        Change::Restart,
        "PHP's memory_limit: the most memory of one request.",
    ),
    option(
        PHP,
        "zlib.output_compression",
        "Off",
        Kind::OneOf(&["On", "Off", "on", "off", "true", "false"]),
        Change::Restart,
        "Whether PHP compresses what it answers.",
    ),
    option(
        PHP,
        "allow_url_fopen",
        "On",
        Kind::OneOf(&["On", "Off", "on", "off", "true", "false"]),
        Change::Restart,
        "Whether PHP's file functions open URLs.",
    ),
    option(
        PHP,
        "display_errors",
        "Off",
        Kind::OneOf(&["On", "Off", "on", "off", "true", "false", "stderr"]),
        Change::Restart,
        "Whether errors are part of answers.",
    ),
    option(
        PHP,
        "max_execution_time",
        "60",
        Kind::Number(0, 86_400),
        Change::Restart,
        "Seconds that a script may run; 0 for no limit.",
    ),
    option(
        PHP,
        "composer_options",
        "",
        Kind::Text,
        Change::Restart,
        "Options of `composer install`, such as --no-scripts.",
    ),
    option(
        JVM,
        "Xms",
        "256m",
        Kind::Text,
        Change::Restart,
        "Tomcat's first heap; Java SE has no default.",
    ),
    option(
        JVM,
        "Xmx",
        "256m",
        Kind::Text,
        Change::Restart,
        "Tomcat's largest heap; Java SE has no default.",
    ),
    option(
        JVM,
        "JVM Options",
        "",
        Kind::Text,
        Change::Restart,
        "Further options of the JVM, with blanks between. Every other name of this namespace that begins with X is one, too: XX:MaxMetaspaceSize.",
    ),
    option(
        SITE,
        "Root",
        "",
        Kind::Text,
        Change::Restart,
        "The directory of a static site. Without it: dist, build, public, _site or out, whichever has an index.html, else the whole bundle.",
    ),
    option(
        SITE,
        "Fallback",
        "",
        Kind::Text,
        Change::Restart,
        "The file that answers paths that are not there, such as index.html for an application in the browser. Without it: 404, with 404.html where there is one.",
    ),
    option(
        INSTANCE,
        "MemoryMax",
        "",
        Kind::Number(16, 4_194_304),
        Change::Replace,
        "MiB of memory that one instance may use; more is killed and reported. Needs an agent with root.",
    ),
    option(
        INSTANCE,
        "CpuMax",
        "",
        Kind::Number(1, 1_024_000),
        Change::Replace,
        "Thousandths of a core that one instance may use. Needs an agent with root.",
    ),
    option(
        INSTANCE,
        "ProcessesMax",
        "512",
        Kind::Number(1, 4_194_304),
        Change::Restart,
        "Processes and threads of one instance. Needs an agent with root.",
    ),
    option(
        INSTANCE,
        "OpenFilesMax",
        "",
        Kind::Number(64, 1_048_576),
        Change::Restart,
        "Open files per process; without it the host's own limit.",
    ),
    option(
        INSTANCE,
        "StopGrace",
        "10",
        Kind::Number(0, 3_600),
        Change::Nothing,
        "Seconds from SIGTERM to SIGKILL.",
    ),
    // EB's gate lasts as long as Timeout, 600 s: on own hosts that is far too long to look at an app
    // that does not come up.
    option(
        INSTANCE,
        "StartTimeout",
        "",
        Kind::Number(1, 3_600),
        Change::Nothing,
        "Seconds from the first moment that an instance runs until it has to answer its health checks well. Without it: Timeout where that is set, else 120.",
    ),
    option(
        INSTANCE,
        "StartGrace",
        "0",
        Kind::Number(0, 3_600),
        Change::Nothing,
        "Seconds from the first moment that a new instance runs in which it may answer its health checks badly, or not at all. StartTimeout begins after them.",
    ),
    option(
        INSTANCE,
        "ReadyCommand",
        "",
        Kind::Command,
        Change::Restart,
        "What is run in a started instance, again and again, until it exits with 0: only then the instance counts as started. Empty for none.",
    ),
    option(
        INSTANCE,
        "ReadyTimeout",
        "10",
        Kind::Number(1, 3_600),
        Change::Nothing,
        "Seconds that one run of ReadyCommand may take before it is ended and tried again. Of instances that start from now on.",
    ),
    option(
        INSTANCE,
        "Overlap",
        "true",
        Kind::Bool,
        Change::Nothing,
        "Whether the only instance of an environment serves until its successor, on another port, does. `false` for an application that must not run twice: its deployments interrupt the service.",
    ),
    // Kubernetes' minReadySeconds is 0 unless set, Nomad's min_healthy_time 10 s, and EB's enhanced health
    // looks at a batch for 2 minutes. 5 s outlast an app that ends every second or two together with its
    // first pauses, and a rolling update still takes no longer than people wait for.
    option(
        INSTANCE,
        "MinUptime",
        "5",
        Kind::Number(0, 3_600),
        Change::Nothing,
        "Seconds that the first instance of a new release has to run without a restart before it gets traffic; where it is set, every instance. A release that was live before needs none.",
    ),
    option(
        RELEASE,
        "Keep",
        "5",
        Kind::Number(1, 50),
        Change::Nothing,
        "Releases that stay prepared on each host, so that going back is a restart.",
    ),
    option(
        RELEASE,
        "BuildMemoryMax",
        "",
        Kind::Number(64, 4_194_304),
        Change::Nothing,
        "MiB of memory that preparing a release may use; more is killed and reported. Without it: half of the host's, at least 512. Needs an agent with root.",
    ),
    option(
        RELEASE,
        "BuildCpuMax",
        "",
        Kind::Number(10, 1_024_000),
        Change::Nothing,
        "Thousandths of a core that preparing a release may use. Without it: all cores but one, at least one. Needs an agent with root.",
    ),
    option(
        RELEASE,
        "BuildProcessesMax",
        "",
        Kind::Number(16, 4_194_304),
        Change::Nothing,
        "Processes and threads of preparing a release. Without it: 1024. Needs an agent with root.",
    ),
    option(
        PLACEMENT,
        "HostLabels",
        "",
        Kind::Labels,
        Change::Nothing,
        "Labels that a host must have to get instances. On a change, instances move off hosts that lack one: their successors serve before they go.",
    ),
    // EB has nothing like it: there whatever is open after the delay is cut. A week is far longer than a
    // connection should be trusted to last; who wants for ever wants an instance that nobody updates.
    option(
        CONNECTIONS,
        "LingerLimit",
        "0",
        Kind::Number(0, 604_800),
        Change::Nothing,
        "Seconds, from when an instance begins to leave, that its open requests (WebSockets, event streams, uploads) may go on. After DeregistrationDelay the deployment goes on without waiting for it. With more than that, instances are not changed in place: a successor starts beside each. 0: what is open after DeregistrationDelay is cut.",
    ),
    // An NLB has an address of its own and needs nothing like it.
    option(
        PROXY,
        "RouteBySNI",
        "false",
        Kind::Bool,
        Change::Nothing,
        "Of a network environment: its ports take clients of TLS alone that ask for its hostnames, so that several environments share a port, also that of HTTPS.",
    ),
    option(
        PROXY,
        "Algorithm",
        "round-robin",
        Kind::OneOf(&[
            "round-robin",
            "least-connections",
            "peak-ewma",
            "consistent-hash",
        ]),
        Change::Nothing,
        "Which instance gets the next request: each in turn; the one with the fewest requests in flight; the one of two that answers sooner, by how long its answers lately took and how many it owes; always the same for the same HashBy, unless that one has 1.25 times its share of the requests in flight.",
    ),
    option(
        PROXY,
        "HashBy",
        "address",
        Kind::HashBy,
        Change::Nothing,
        "What consistent-hash tells requests apart by: the client's address, the path, the value of a header or of a cookie. Requests that lack it go by turns.",
    ),
    option(
        PROXY,
        "StickyBy",
        "cookie",
        Kind::StickyBy,
        Change::Nothing,
        "With StickinessEnabled, what a client is known again by: a cookie of the load balancer, its address, or the value of a header of its requests.",
    ),
    // Envoy ejects after five errors in a row unless told otherwise. Here it has to be asked for: who knows a
    // request that an application answers with an error could take instances out with it.
    option(
        PROXY,
        "EjectAfterFailures",
        "0",
        Kind::Number(0, 1_000),
        Change::Nothing,
        "Requests in a row without an answer of an instance (none within a minute, one that breaks off, 502, 503, 504) after which it gets none for a while, whatever its checks say. 0: never. An instance that refuses a connection gets nothing before its next good check in any case.",
    ),
    option(
        PROXY,
        "EjectAfterErrors",
        "0",
        Kind::Number(0, 1_000),
        Change::Nothing,
        "The same for requests in a row that an instance answers with a status of 500 or above, or not. 0: never.",
    ),
    option(
        PROXY,
        "EjectErrorRate",
        "0",
        Kind::Number(0, 100),
        Change::Nothing,
        "The same when so many per cent of an instance's requests within EjectWindow were answered so, of at least 20. 0: never.",
    ),
    option(
        PROXY,
        "EjectWindow",
        "30",
        Kind::Number(1, 3_600),
        Change::Nothing,
        "Seconds over which EjectErrorRate is counted.",
    ),
    option(
        PROXY,
        "EjectTime",
        "30",
        Kind::Number(1, 3_600),
        Change::Nothing,
        "Seconds that an instance then gets no requests; twice as long the second time, three times the third, up to five minutes. Each such time that it has been back for makes up for one.",
    ),
    option(
        PROXY,
        "MaxEjected",
        "10",
        Kind::Number(1, 100),
        Change::Nothing,
        "How many per cent of the instances may be left out so at once. One always may be, and the last that is well never is.",
    ),
    option(
        PROXY,
        "SlowStart",
        "0",
        Kind::Number(0, 900),
        Change::Nothing,
        "Seconds in which an instance that begins to get requests, or gets them again, comes from a tenth of its share to all of it, beside others that have all of theirs. 0: at once.",
    ),
    option(
        LOADBALANCER,
        "IdleTimeout",
        "60",
        Kind::Number(1, 3_600),
        Change::Nothing,
        "How long an instance may stay silent over a request before its client gets a 504, and how long a client may before it gets a 408 or is left, in seconds. WebSockets may be silent for ever. Of a network environment: how long a connection may be silent before it is cut, 350 unless set.",
    ),
    option(
        PROXY,
        "MaxBodySize",
        "0",
        Kind::Number(0, 1_048_576),
        Change::Nothing,
        "The largest body of a request, in MiB; larger ones get a 413. 0: any.",
    ),
    option(
        PROXY,
        "RateLimit",
        "0",
        Kind::Number(0, 1_000_000),
        Change::Nothing,
        "How many requests a second the environment takes at each load balancer; more get a 429. 0: any.",
    ),
    option(
        PROXY,
        "RateBurst",
        "0",
        Kind::Number(0, 1_000_000),
        Change::Nothing,
        "How many of these may come at once. 0: as many as in a second.",
    ),
    option(
        PROXY,
        "ClientRateLimit",
        "0",
        Kind::Number(0, 1_000_000),
        Change::Nothing,
        "How many requests a second each client may send to each load balancer, by its address (of IPv6, its /64; behind a trusted proxy, the one that it tells); more get a 429. 0: any.",
    ),
    option(
        PROXY,
        "ClientRateBurst",
        "0",
        Kind::Number(0, 1_000_000),
        Change::Nothing,
        "How many of these may come at once. 0: as many as in a second.",
    ),
    // EB's platforms have their nginx compress text unless told otherwise. Here it has to be asked for: it costs
    // the load balancer's time, and a page that holds a secret beside what a client chose may give it away by its
    // length (BREACH).
    option(
        PROXY,
        "Compression",
        "none",
        Kind::Encodings,
        Change::Nothing,
        "How the load balancer compresses text that the application sends uncompressed, for clients that take it: the encodings there are, the best liked first. `none`: answers go as they are.",
    ),
    option(
        PROXY,
        "CompressionMinSize",
        "1024",
        Kind::Number(0, 1_048_576),
        Change::Nothing,
        "Answers that are known to have fewer bytes than that are not compressed.",
    ),
    option(
        PROXY,
        "ReplaceErrors",
        "false",
        Kind::Bool,
        Change::Nothing,
        "Whether the environment's own error pages (`beanpole page set`) also take the place of the application's answers from status 500 on, for clients that take HTML.",
    ),
    option(
        PROXY,
        "HoldTimeout",
        "30",
        Kind::Number(0, 300),
        Change::Nothing,
        "While an operation changes instances and none can take requests, such as the restart of a single one, they wait that long at most, in seconds. 0: they get a 503 at once.",
    ),
    option(
        PROXY,
        "HoldMax",
        "1000",
        Kind::Number(1, 100_000),
        Change::Nothing,
        "How many requests wait so at a time, in each load balancer.",
    ),
    option(
        PROXY,
        "IdleTime",
        "900",
        Kind::Number(1, 2_592_000),
        Change::Nothing,
        "After how long without a request an environment falls asleep whose `MinSize` is 0, in seconds. The next request waits for an instance, for `HoldTimeout` at most (30 s where that is 0).",
    ),
    // EB has nothing like it, nor has the ALB.
    option(
        PROXY,
        "HealthCheckHeaders",
        "",
        Kind::Headers,
        Change::Check,
        "Headers that a health check sends, with a vertical bar between them; Host, User-Agent and Accept are sent so instead of as usual. They are shown to everybody who may see the settings.",
    ),
    option(
        PROXY,
        "MatcherBody",
        "",
        Kind::BodyMatch,
        Change::Check,
        "What the body of a good answer has to contain, or the regular expression that it has to match, within its first 64 KiB. Of the statuses of MatcherHTTPCode.",
    ),
    option(
        PROXY,
        "HealthCheckService",
        "",
        Kind::GrpcService,
        Change::Check,
        "The service whose health a check by gRPC asks for; without it, the server's as a whole.",
    ),
    // The ALB's default is 12, for it asks for a method that nobody has.
    option(
        PROXY,
        "MatcherGRPCCode",
        "0",
        Kind::GrpcCodes,
        Change::Check,
        "The gRPC statuses of a good check. With 0 the service has to be SERVING; `0,12` also takes a server that has no health service.",
    ),
    // Named as by the ALB's target groups; EB has nothing like it.
    option(
        PROXY,
        "ProtocolVersion",
        "HTTP1",
        Kind::OneOf(&["HTTP1", "HTTP2", "GRPC"]),
        Change::Restart,
        "How the load balancer speaks to the instances: HTTP/1.1, or HTTP/2 without TLS from the first byte (prior knowledge). GRPC is HTTP2 with a check by gRPC, unless Protocol says otherwise. HTTP2 and GRPC carry no WebSockets.",
    ),
    // Envoy: max_requests, max_connections and max_pending_requests of a cluster; HAProxy: maxconn and its queue.
    option(
        PROXY,
        "MaxRequests",
        "0",
        Kind::Number(0, 1_000_000),
        Change::Nothing,
        "How many requests may be in flight to all instances of the environment at each load balancer, WebSockets included. 0: any.",
    ),
    option(
        PROXY,
        "MaxRequestsPerInstance",
        "0",
        Kind::Number(0, 1_000_000),
        Change::Nothing,
        "How many may be in flight to one instance at each load balancer. By HTTP/1.1 that is how many connections it gets. A request for an instance that has so many goes to another one, unless its client has to stay. 0: any.",
    ),
    option(
        PROXY,
        "MaxPending",
        "100",
        Kind::Number(0, 100_000),
        Change::Nothing,
        "How many requests wait at each load balancer while MaxRequests or MaxRequestsPerInstance are in flight; others get a 503 at once.",
    ),
    option(
        PROXY,
        "PendingTimeout",
        "5",
        Kind::Number(0, 300),
        Change::Nothing,
        "Seconds that they wait before they get a 503. 0: they do not wait.",
    ),
    // Linkerd's: a fifth of the requests, and 10 a second.
    option(
        PROXY,
        "RetryBudget",
        "20",
        Kind::Number(0, 100),
        Change::Nothing,
        "How many per cent of the requests of the last 10 seconds each load balancer may send once more: those that could not be sent to an instance, and those of RetryFailed. The rest fail at once.",
    ),
    option(
        PROXY,
        "RetryMinimum",
        "10",
        Kind::Number(0, 10_000),
        Change::Nothing,
        "How many a second it may send once more besides these.",
    ),
    option(
        PROXY,
        "RetryFailed",
        "false",
        Kind::Bool,
        Change::Nothing,
        "Ask another instance, once, where one answers GET, HEAD or OPTIONS without a body with 502, 503 or 504, or breaks off before it answers.",
    ),
    option(
        PROXY,
        "ProxyProtocol",
        "off",
        Kind::OneOf(&["off", "v1", "v2"]),
        Change::Restart,
        "Begin every connection to an instance with its client's address, by the PROXY protocol. The application has to expect it. A connection then serves one client alone. Health checks announce nobody (LOCAL; UNKNOWN in v1).",
    ),
    option(
        PROXY,
        "AnswerTimeout",
        "0",
        Kind::Number(0, 86_400),
        Change::Nothing,
        "Seconds from a request's head until its answer has to begin; then its client gets a 504, also where the body of the request is still on its way. 0: only IdleTimeout counts.",
    ),
    option(
        PROXY,
        "RequestTimeout",
        "0",
        Kind::Number(0, 86_400),
        Change::Nothing,
        "Seconds from a request's head until the end of its answer. Then its client gets a 504, or where the answer has begun it breaks off. Not of WebSockets. 0: any time.",
    ),
];

/// The option of that namespace and name.
pub fn spec(namespace: &str, name: &str) -> Option<&'static OptionSpec> {
    KNOWN
        .iter()
        .find(|known| known.namespace == namespace && known.name == name)
        .or_else(|| named(namespace).find(|known| known.name == name))
}

#[cfg(test)]
mod tests {
    use super::super::NAMED;
    use super::*;

    #[test]
    fn every_default_is_a_value_that_its_option_takes() {
        for known in KNOWN.iter().chain(NAMED) {
            if !known.default.is_empty() {
                assert!(
                    known.kind.accepts(known.default),
                    "{}:{}",
                    known.namespace,
                    known.name
                );
            }
        }
    }
}

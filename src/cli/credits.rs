//! `meterd credits`: grants credits to clients, and shows what they have paid and what is left.

use super::chart::table;
use super::connect::{self, ConnectArgs, Connection};
use super::hints;
use super::time::time_text;
use crate::proto::billing_service_client::BillingServiceClient;
use crate::proto::{
    CreateCreditGrantRequest, CreditBalanceGrant, CreditGrant, CreditSource, CreditUse, GetCreditBalanceRequest,
    GetCreditGrantRequest, GetCurrentPeriodRequest, GetCurrentPeriodResponse, ListCreditGrantsRequest, Money,
    VoidCreditGrantRequest,
};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::process::ExitCode;
use tonic::Status;

const CALL_SECONDS: u64 = 30;
const PAGE_SIZE: i32 = 1_000;

/// Grant credits to clients, and show what they have paid and what is left
#[derive(Args, Clone, Debug)]
pub struct CreditsArgs {
    #[command(subcommand)]
    pub command: CreditsCommand,
}

/// Subcommands of `credits`.
#[derive(Subcommand, Clone, Debug)]
pub enum CreditsCommand {
    /// Grant credits to a client
    ///
    /// They pay for usage that is recorded afterwards. If the command is repeated, the credits are granted again, unless both calls have
    /// the same --request-id.
    Grant(GrantArgs),
    /// List the grants of a client, the oldest first
    List(ClientArgs),
    /// Show a grant, and what it has paid of each month
    Show(GrantIdArgs),
    /// Void a grant: it pays for nothing more, and what it has paid stays paid
    Void(GrantIdArgs),
    /// Show what is left of the grants that are valid on a day
    Balance(BalanceArgs),
    /// Show what a client has used and paid in its current month
    Period(ClientArgs),
}

/// Where credits come from.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Source {
    Promotion,
    Purchase,
}

/// Arguments of `credits grant`.
#[derive(Args, Clone, Debug)]
pub struct GrantArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    pub client: String,
    /// The amount, in the currency of the deployment, such as 50.00
    #[arg(value_name = "AMOUNT")]
    pub amount: String,
    /// Where the credits come from
    #[arg(long, value_enum, default_value_t = Source::Purchase)]
    pub source: Source,
    /// Grants with a lower number pay first [default: 100]
    #[arg(long, value_name = "NUMBER")]
    pub priority: Option<i32>,
    /// First day on which usage is paid, such as 2026-11-21 [default: today]
    #[arg(long, value_name = "DAY", default_value = "", hide_default_value = true)]
    pub from: String,
    /// Last day on which usage is paid [default: the grant does not expire]
    #[arg(long, value_name = "DAY", default_value = "", hide_default_value = true)]
    pub until: String,
    /// A remark for people
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub note: String,
    /// An id of this call: if it is repeated with the same id, nothing is granted again
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub request_id: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Arguments of the subcommands for a client.
#[derive(Args, Clone, Debug)]
pub struct ClientArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    pub client: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Arguments of the subcommands for a grant.
#[derive(Args, Clone, Debug)]
pub struct GrantIdArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    pub client: String,
    /// Id of the grant
    #[arg(value_name = "GRANT")]
    pub grant: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Arguments of `credits balance`.
#[derive(Args, Clone, Debug)]
pub struct BalanceArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    pub client: String,
    /// The day in the client's time zone, such as 2026-11-21 [default: today]
    #[arg(long, value_name = "DAY", default_value = "", hide_default_value = true)]
    pub date: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Runs the subcommand.
pub async fn run(args: CreditsArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        CreditsCommand::Grant(args) => grant(args).await?,
        CreditsCommand::List(args) => list(args).await?,
        CreditsCommand::Show(args) => show(args).await?,
        CreditsCommand::Void(args) => void(args).await?,
        CreditsCommand::Balance(args) => balance(args).await?,
        CreditsCommand::Period(args) => period(args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A connection for calls about one client.
struct Caller {
    connect: ConnectArgs,
    channel: Connection,
    client: String,
}

impl Caller {
    async fn new(connect: &ConnectArgs, client: &str) -> anyhow::Result<Self> {
        Ok(Self { connect: connect.clone(), channel: connect.channel().await?, client: client.to_owned() })
    }

    fn service(&self) -> BillingServiceClient<Connection> {
        connect::billing_client(self.channel.clone())
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        self.connect.request(message, CALL_SECONDS)
    }

    /// Returns the message of an answer, or an error with a hint if the client does not exist.
    async fn answer<T>(&self, answer: Result<tonic::Response<T>, Status>) -> anyhow::Result<T> {
        match answer {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(hints::client_error(&self.connect, &self.channel, &status, &self.client).await),
        }
    }
}

async fn grant(args: GrantArgs) -> anyhow::Result<()> {
    let caller = Caller::new(&args.connect, &args.client).await?;
    let source = match args.source {
        Source::Promotion => CreditSource::Promotion,
        Source::Purchase => CreditSource::Purchase,
    };
    let grant = CreditGrant {
        client_id: args.client,
        amount: args.amount,
        source: source.into(),
        priority: args.priority,
        first_date: args.from,
        last_date: args.until,
        note: args.note,
        ..Default::default()
    };
    let request = CreateCreditGrantRequest { grant: Some(grant), request_id: args.request_id };
    let answer = caller.service().create_credit_grant(caller.request(request)).await;
    print_grants(&[caller.answer(answer).await?.grant.unwrap_or_default()], args.json);
    Ok(())
}

async fn list(args: ClientArgs) -> anyhow::Result<()> {
    let caller = Caller::new(&args.connect, &args.client).await?;
    let (mut grants, mut page_token) = (vec![], String::new());
    loop {
        let request = ListCreditGrantsRequest { client_id: args.client.clone(), page_size: PAGE_SIZE, page_token };
        let page = caller.answer(caller.service().list_credit_grants(caller.request(request)).await).await?;
        grants.extend(page.grants);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    match grants.is_empty() && !args.json {
        true => println!("{0} has no grants: `meterd credits grant {0} AMOUNT` grants credits", args.client),
        false => print_grants(&grants, args.json),
    }
    Ok(())
}

async fn show(args: GrantIdArgs) -> anyhow::Result<()> {
    let caller = Caller::new(&args.connect, &args.client).await?;
    let request = GetCreditGrantRequest { client_id: args.client, grant_id: args.grant };
    let found = caller.answer(caller.service().get_credit_grant(caller.request(request)).await).await?;
    let grant = found.grant.unwrap_or_default();
    if args.json {
        let uses: Vec<Value> = found.uses.iter().map(use_json).collect();
        let mut grant = grant_json(&grant);
        grant["uses"] = uses.into();
        println!("{grant}");
        return Ok(());
    }
    print_grants(&[grant], false);
    if !found.uses.is_empty() {
        println!("");
        let header = ["month", "paid"].map(str::to_owned).to_vec();
        let row = |of: &CreditUse| vec![of.month.clone(), amount(of.amount.as_ref())];
        let rows: Vec<_> = std::iter::once(header).chain(found.uses.iter().map(row)).collect();
        table(&rows, &[false, true]).iter().for_each(|line| println!("{line}"));
    }
    Ok(())
}

async fn void(args: GrantIdArgs) -> anyhow::Result<()> {
    let caller = Caller::new(&args.connect, &args.client).await?;
    let request = VoidCreditGrantRequest { client_id: args.client, grant_id: args.grant };
    let voided = caller.answer(caller.service().void_credit_grant(caller.request(request)).await).await?;
    print_grants(&[voided.grant.unwrap_or_default()], args.json);
    Ok(())
}

async fn balance(args: BalanceArgs) -> anyhow::Result<()> {
    let caller = Caller::new(&args.connect, &args.client).await?;
    let request = GetCreditBalanceRequest { client_id: args.client.clone(), date: args.date };
    let balance = caller.answer(caller.service().get_credit_balance(caller.request(request)).await).await?;
    if args.json {
        let grant = |CreditBalanceGrant { grant, remaining }: &CreditBalanceGrant| {
            let mut grant = grant_json(&grant.clone().unwrap_or_default());
            grant["remaining"] = remaining.as_str().into();
            grant
        };
        let grants: Vec<Value> = balance.grants.iter().map(grant).collect();
        let available = amount(balance.available.as_ref());
        println!("{}", json!({ "date": balance.date, "available": available, "grants": grants }));
        return Ok(());
    }
    println!("{} left on {} for {}", money(balance.available.as_ref()), balance.date, args.client);
    if !balance.grants.is_empty() {
        let header = ["grant", "source", "until", "amount", "left"].map(str::to_owned).to_vec();
        let row = |CreditBalanceGrant { grant, remaining }: &CreditBalanceGrant| {
            let grant = grant.clone().unwrap_or_default();
            let source = source_text(&grant);
            vec![grant.grant_id, source, or_never(&grant.last_date), grant.amount, remaining.clone()]
        };
        let rows: Vec<_> = std::iter::once(header).chain(balance.grants.iter().map(row)).collect();
        table(&rows, &[false, false, false, true, true]).iter().for_each(|line| println!("{line}"));
    }
    Ok(())
}

async fn period(args: ClientArgs) -> anyhow::Result<()> {
    let caller = Caller::new(&args.connect, &args.client).await?;
    let request = GetCurrentPeriodRequest { client_id: args.client.clone() };
    let period = caller.answer(caller.service().get_current_period(caller.request(request)).await).await?;
    match args.json {
        true => println!("{}", period_json(&period)),
        false => period_lines(&period).iter().for_each(|line| println!("{line}")),
    }
    Ok(())
}

fn amount(money: Option<&Money>) -> String {
    money.map(|money| money.amount.clone()).unwrap_or_default()
}

fn money(money: Option<&Money>) -> String {
    money.map(|money| format!("{} {}", money.amount, money.currency)).unwrap_or_default()
}

fn or_never(last_date: &str) -> String {
    if last_date.is_empty() { "(no end)".to_owned() } else { last_date.to_owned() }
}

fn source_text(grant: &CreditGrant) -> String {
    match grant.source() {
        CreditSource::Plan => format!("plan {}", grant.plan_id),
        CreditSource::Promotion => "promotion".to_owned(),
        CreditSource::Purchase => "purchase".to_owned(),
        CreditSource::Unspecified => String::new(),
    }
}

fn print_grants(grants: &[CreditGrant], json: bool) {
    if json {
        grants.iter().for_each(|grant| println!("{}", grant_json(grant)));
        return;
    }
    let header = ["grant", "source", "from", "until", "priority", "amount", "paid", "note"].map(str::to_owned).to_vec();
    let row = |grant: &CreditGrant| {
        let void = if grant.void_time.is_some() { " (void)" } else { "" };
        vec![
            grant.grant_id.clone(),
            source_text(grant),
            grant.first_date.clone(),
            format!("{}{void}", or_never(&grant.last_date)),
            grant.priority().to_string(),
            grant.amount.clone(),
            grant.used.clone(),
            grant.note.clone(),
        ]
    };
    let rows: Vec<_> = std::iter::once(header).chain(grants.iter().map(row)).collect();
    let right = [false, false, false, false, true, true, true, false];
    table(&rows, &right).iter().for_each(|line| println!("{line}"));
}

fn grant_json(grant: &CreditGrant) -> Value {
    json!({
        "grant_id": grant.grant_id,
        "client_id": grant.client_id,
        "source": grant.source().as_str_name().trim_start_matches("CREDIT_SOURCE_").to_lowercase(),
        "plan_id": grant.plan_id,
        "amount": grant.amount,
        "used": grant.used,
        "priority": grant.priority(),
        "first_date": grant.first_date,
        "last_date": grant.last_date,
        "note": grant.note,
        "create_time": time_text(grant.create_time.as_ref()),
        "void_time": grant.void_time.as_ref().map(|time| time_text(Some(time))),
    })
}

fn use_json(of: &CreditUse) -> Value {
    json!({ "month": of.month, "amount": amount(of.amount.as_ref()) })
}

fn period_lines(period: &GetCurrentPeriodResponse) -> Vec<String> {
    let plan = if period.plan_id.is_empty() { "(none)" } else { &period.plan_id };
    let mut lines = vec![
        format!("month              {}", period.month),
        format!("plan               {plan}"),
        format!("plan fees          {}", money(period.plan_fees.as_ref())),
        format!("requests           {}", period.request_count),
        format!("cost               {}", money(period.cost.as_ref())),
        format!("  paid by credits  {}", money(period.credits_used.as_ref())),
        format!("  payable          {}", money(period.payable.as_ref())),
        format!("credits left       {}", money(period.credits_available.as_ref())),
    ];
    if period.unpriced_event_count > 0 {
        let count = period.unpriced_event_count;
        lines.push(format!("unpriced           {count} events without a price: see `meterd unpriced`"));
    }
    if !period.services.is_empty() {
        let header = ["service", "requests", "units", "cost"].map(str::to_owned).to_vec();
        let rows = period.services.iter().map(|service| {
            let cost = amount(service.cost.as_ref());
            vec![service.service.clone(), service.request_count.to_string(), service.units.clone(), cost]
        });
        lines.push(String::new());
        lines.extend(table(&std::iter::once(header).chain(rows).collect::<Vec<_>>(), &[false, true, true, true]));
    }
    lines
}

fn period_json(period: &GetCurrentPeriodResponse) -> Value {
    let services = period.services.iter().map(|service| {
        json!({
            "service": service.service,
            "cost": amount(service.cost.as_ref()),
            "request_count": service.request_count,
            "units": service.units,
        })
    });
    json!({
        "client_id": period.client_id,
        "month": period.month,
        "plan_id": period.plan_id,
        "plan_fees": amount(period.plan_fees.as_ref()),
        "cost": amount(period.cost.as_ref()),
        "currency": period.cost.as_ref().map(|cost| cost.currency.clone()),
        "request_count": period.request_count,
        "unpriced_event_count": period.unpriced_event_count,
        "credits_used": amount(period.credits_used.as_ref()),
        "payable": amount(period.payable.as_ref()),
        "credits_available": amount(period.credits_available.as_ref()),
        "services": services.collect::<Vec<_>>(),
    })
}

//! `meterd clients`: lists, shows, creates and changes clients.

use super::chart::table;
use super::connect::{self, ConnectArgs, Connection};
use super::hints;
use super::sheet::{self, Cell};
use super::time::time_text;
use crate::proto::client_service_client::ClientServiceClient;
use crate::proto::{Client, CreateClientRequest, GetClientRequest, ListClientsRequest, UpdateClientRequest};
use clap::{Args, Subcommand};
use prost_types::FieldMask;
use serde_json::json;
use std::process::ExitCode;

const CALL_SECONDS: u64 = 30;
const PAGE_SIZE: u32 = 1_000;

/// List, show, create and change clients
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ClientsArgs {
    #[command(subcommand)]
    pub command: Option<ClientsCommand>,
    #[command(flatten)]
    pub list: ListArgs,
}

/// Subcommands of `clients`.
#[derive(Subcommand, Clone, Debug)]
pub enum ClientsCommand {
    /// List clients, ordered by id (the default)
    List(ListArgs),
    /// Show one client
    Show(ShowArgs),
    /// Create a client before its first event
    Create(ChangeArgs),
    /// Change the name or time zone of a client
    Update(ChangeArgs),
}

/// Arguments of `clients list`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Maximum number of clients
    #[arg(long, default_value_t = 1_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub limit: u32,
    /// Print JSON, one client per line
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Print CSV
    #[arg(long)]
    pub csv: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Arguments of `clients show`.
#[derive(Args, Clone, Debug)]
pub struct ShowArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    pub client: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Arguments of `clients create` and `clients update`.
#[derive(Args, Clone, Debug)]
pub struct ChangeArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    pub client: String,
    /// Display name, such as "Acme Inc."
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// IANA time zone of the client's days and months, such as Europe/Berlin
    #[arg(long, value_name = "ZONE", value_parser = parse_zone)]
    pub time_zone: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

fn parse_zone(text: &str) -> Result<String, String> {
    if text.parse::<chrono_tz::Tz>().is_ok() {
        return Ok(text.to_owned());
    }
    let names = chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name());
    let is_city = |name: &&str| name.rsplit('/').next().is_some_and(|city| city.eq_ignore_ascii_case(text));
    let hint = match names.clone().find(is_city) {
        Some(name) => Some(format!("did you mean {name}?")),
        None => hints::did_you_mean(text, names),
    };
    let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
    Err(format!("must be an IANA time zone such as Europe/Berlin{hint}"))
}

/// Runs the subcommand.
pub async fn run(args: ClientsArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        None => list(args.list).await?,
        Some(ClientsCommand::List(args)) => list(args).await?,
        Some(ClientsCommand::Show(args)) => show(args).await?,
        Some(ClientsCommand::Create(args)) => create(args).await?,
        Some(ClientsCommand::Update(args)) => update(args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn service(channel: &Connection) -> ClientServiceClient<Connection> {
    connect::clients_client(channel.clone())
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let mut service = service(&args.connect.channel().await?);
    let (mut clients, mut page_token): (Vec<Client>, _) = (vec![], String::new());
    loop {
        let left = args.limit - clients.len() as u32;
        let request = ListClientsRequest { page_size: left.min(PAGE_SIZE) as i32, page_token };
        let answer = service.list_clients(args.connect.request(request, CALL_SECONDS)).await;
        let page = answer.map_err(|status| connect::status_error(&status))?.into_inner();
        clients.extend(page.clients);
        page_token = page.next_page_token;
        if page_token.is_empty() || clients.len() >= args.limit as usize {
            break;
        }
    }
    if args.json {
        clients.iter().for_each(|client| println!("{}", to_json(client)));
    } else if args.csv {
        println!("{}", sheet::lines(&to_csv(&clients)?));
    } else {
        to_table(&clients).iter().for_each(|line| println!("{line}"));
    }
    if !page_token.is_empty() {
        eprintln!("only the first {} clients are shown: increase --limit", args.limit);
    }
    Ok(())
}

async fn show(args: ShowArgs) -> anyhow::Result<()> {
    let channel = args.connect.channel().await?;
    let request = GetClientRequest { client_id: args.client.clone() };
    match service(&channel).get_client(args.connect.request(request, CALL_SECONDS)).await {
        Ok(answer) => print(&answer.into_inner().client.unwrap_or_default(), args.json),
        Err(status) => return Err(hints::client_error(&args.connect, &channel, &status, &args.client).await),
    }
    Ok(())
}

fn client_of(args: &ChangeArgs) -> Client {
    Client {
        client_id: args.client.clone(),
        display_name: args.name.clone().unwrap_or_default(),
        time_zone: args.time_zone.clone().unwrap_or_default(),
        ..Default::default()
    }
}

async fn create(args: ChangeArgs) -> anyhow::Result<()> {
    let request = CreateClientRequest { client: Some(client_of(&args)), request_id: String::new() };
    let mut service = service(&args.connect.channel().await?);
    let answer = service.create_client(args.connect.request(request, CALL_SECONDS)).await;
    let answer = answer.map_err(|status| connect::status_error(&status))?.into_inner();
    print(&answer.client.unwrap_or_default(), args.json);
    Ok(())
}

async fn update(args: ChangeArgs) -> anyhow::Result<()> {
    let fields = [("display_name", args.name.is_some()), ("time_zone", args.time_zone.is_some())];
    let paths: Vec<String> = fields.iter().filter(|(_, is_set)| *is_set).map(|(path, _)| (*path).to_owned()).collect();
    anyhow::ensure!(!paths.is_empty(), "nothing to change: add --name, --time-zone or both");
    let request = UpdateClientRequest { client: Some(client_of(&args)), update_mask: Some(FieldMask { paths }) };
    let channel = args.connect.channel().await?;
    let updated = match service(&channel).update_client(args.connect.request(request, CALL_SECONDS)).await {
        Ok(answer) => answer.into_inner().client.unwrap_or_default(),
        Err(status) => return Err(hints::client_error(&args.connect, &channel, &status, &args.client).await),
    };
    print(&updated, args.json);
    if args.time_zone.is_some() && !args.json {
        println!(
            "Existing events keep their days. `meterd rebuild --client {} --month YYYY-MM --rezone` moves them.",
            args.client
        );
    }
    Ok(())
}

fn print(client: &Client, json: bool) {
    match json {
        true => println!("{}", to_json(client)),
        false => {
            println!("client     {}", client.client_id);
            println!("name       {}", client.display_name);
            println!("time zone  {}", client.time_zone);
            println!("created    {}", time_text(client.create_time.as_ref()));
            println!("changed    {}", time_text(client.update_time.as_ref()));
        }
    }
}

fn to_table(clients: &[Client]) -> Vec<String> {
    if clients.is_empty() {
        return vec!["no clients yet: the first event of a client creates it".to_owned()];
    }
    let mut rows = vec![["client", "name", "time zone", "created"].map(str::to_owned).to_vec()];
    rows.extend(clients.iter().map(|client| {
        let created = time_text(client.create_time.as_ref());
        vec![client.client_id.clone(), client.display_name.clone(), client.time_zone.clone(), created]
    }));
    table(&rows, &[])
}

fn to_csv(clients: &[Client]) -> anyhow::Result<String> {
    let header = ["client_id", "display_name", "time_zone", "create_time", "update_time"];
    let cells = clients.iter().map(|client| {
        vec![
            Cell::text(&client.client_id),
            Cell::text(&client.display_name),
            Cell::text(&client.time_zone),
            Cell::plain(time_text(client.create_time.as_ref())),
            Cell::plain(time_text(client.update_time.as_ref())),
        ]
    });
    sheet::csv(&sheet::header(&header), &cells.collect::<Vec<_>>())
}

fn to_json(client: &Client) -> serde_json::Value {
    json!({
        "client_id": client.client_id,
        "display_name": client.display_name,
        "time_zone": client.time_zone,
        "create_time": time_text(client.create_time.as_ref()),
        "update_time": time_text(client.update_time.as_ref()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_a_line_of_the_table_and_an_escaped_row_of_the_csv() {
        let client = Client {
            client_id: "+acme".into(),
            display_name: "Acme, Inc.".into(),
            time_zone: "UTC".into(),
            ..Default::default()
        };
        assert_eq!(to_table(std::slice::from_ref(&client))[1], "+acme   Acme, Inc.  UTC");
        assert!(to_csv(&[client]).unwrap().ends_with("\r\n'+acme,\"Acme, Inc.\",UTC,,\r\n"));
        assert!(to_table(&[])[0].starts_with("no clients yet"));
    }

    #[test]
    fn the_error_of_a_misspelt_time_zone_suggests_similar_ones() {
        assert!(parse_zone("Europe/Berln").unwrap_err().contains("did you mean Europe/Berlin"));
        assert_eq!(parse_zone("Asia/Tokyo").as_deref(), Ok("Asia/Tokyo"));
    }
}

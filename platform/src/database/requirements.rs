//! The requirements on a database, which `migrate` checks before its first change.
//!
//! Without this check, migrations could fail halfway, and an operator would have to repair the database. Each unmet
//! requirement is one sentence, and all of them are reported together.
use sqlx::PgConnection;

/// The oldest supported major version of PostgreSQL.
const MIN_MAJOR_VERSION: i32 = 15;

/// The properties of a database and its roles on which the migrations depend. Each `may_…` is a right of the schema
/// owner. The rights to create and to grant a role are also `true` if `migrate` does not need them.
#[derive(Debug, Clone, sqlx::FromRow)]
#[expect(clippy::struct_excessive_bools, reason = "each check reads a value of its own")]
struct DatabaseProperties {
    version: i32,
    encoding: String,
    current_schema: Option<String>,
    role_exists: bool,
    may_create: bool,
    may_create_roles: bool,
    may_grant: bool,
    may_alter_role: bool,
    owns_tables: bool,
}

/// Returns a sentence for each unmet requirement. `connection` is that of the schema owner, and `role` is the service's
/// role.
pub(crate) async fn unmet(connection: &mut PgConnection, role: &str) -> Result<Vec<String>, sqlx::Error> {
    let statement = sqlx::query_as(
        "select
           current_setting('server_version_num')::integer / 10000 as version,
           current_setting('server_encoding') as encoding,
           current_schema()::text as current_schema,
           service.oid is not null as role_exists,
           coalesce(has_schema_privilege(to_regnamespace('public')::oid, 'create'), false) as may_create,
           owner.rolsuper or owner.rolcreaterole or to_regclass('public._sqlx_migrations') is not null
             as may_create_roles,
           coalesce(
             owner.rolsuper or runtime.oid is null or owner.oid = service.oid
               or (owner.rolcreaterole and current_setting('server_version_num')::integer < 160000)
               or pg_has_role(runtime.oid, 'member with admin option'),
             false
           ) as may_grant,
           coalesce(
             owner.rolsuper or owner.oid = service.oid
               or (owner.rolcreaterole and current_setting('server_version_num')::integer < 160000)
               or pg_has_role(service.oid, 'member with admin option'),
             false
           ) as may_alter_role,
           not exists (
             select
             from pg_class
             where oid = to_regclass('public._sqlx_migrations') and not pg_has_role(relowner, 'usage')
           ) as owns_tables
         from pg_roles as owner
         left join pg_roles as service on service.rolname = $1
         left join pg_roles as runtime on runtime.rolname = 'app_runtime'
         where owner.rolname = current_user",
    );
    let facts: DatabaseProperties = statement.bind(role).fetch_one(connection).await?;
    Ok(facts.unmet(role))
}

impl DatabaseProperties {
    fn unmet(&self, role: &str) -> Vec<String> {
        let schema = self.current_schema.as_deref().unwrap_or("none");
        let requirements = [
            (
                self.version >= MIN_MAJOR_VERSION,
                format!(
                    "the server is PostgreSQL {}, and {MIN_MAJOR_VERSION} or newer is required",
                    self.version
                ),
            ),
            (
                self.encoding == "UTF8",
                format!("the encoding of the database is {}, and UTF8 is required", self.encoding),
            ),
            (
                schema == "public",
                format!("the first schema of the owner's search_path is {schema}, and public is required"),
            ),
            (self.may_create, "the owner has no right to create tables in the schema public".to_owned()),
            (self.may_create_roles, "the owner has no right to create roles (CREATEROLE)".to_owned()),
            (
                self.may_grant,
                "the owner has no right to grant the existing role app_runtime (ADMIN OPTION)".to_owned(),
            ),
            (self.owns_tables, "the tables of the database belong to another role".to_owned()),
            (self.role_exists, format!("the role {role} of DATABASE_URL does not exist")),
            (
                self.may_alter_role || !self.role_exists,
                format!("the owner has no right to change settings of the role {role} (ADMIN OPTION)"),
            ),
        ];
        requirements.into_iter().filter(|(is_met, _)| !is_met).map(|(_, sentence)| sentence).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sufficient() -> DatabaseProperties {
        DatabaseProperties {
            version: 15,
            encoding: "UTF8".to_owned(),
            current_schema: Some("public".to_owned()),
            role_exists: true,
            may_create: true,
            may_create_roles: true,
            may_grant: true,
            may_alter_role: true,
            owns_tables: true,
        }
    }

    #[test]
    fn each_unmet_requirement_is_named_in_one_sentence() {
        assert_eq!(sufficient().unmet("app"), Vec::<String>::new());
        for (facts, named) in [
            (DatabaseProperties { version: 14, ..sufficient() }, "PostgreSQL 14"),
            (DatabaseProperties { encoding: "SQL_ASCII".to_owned(), ..sufficient() }, "SQL_ASCII"),
            (
                DatabaseProperties { current_schema: Some("shop".to_owned()), ..sufficient() },
                "search_path is shop",
            ),
            (DatabaseProperties { current_schema: None, ..sufficient() }, "search_path is none"),
            (
                DatabaseProperties { role_exists: false, may_alter_role: false, ..sufficient() },
                "role app of DATABASE_URL",
            ),
            (DatabaseProperties { may_create: false, ..sufficient() }, "create tables"),
            (DatabaseProperties { may_create_roles: false, ..sufficient() }, "CREATEROLE"),
            (DatabaseProperties { may_grant: false, ..sufficient() }, "role app_runtime"),
            (DatabaseProperties { may_alter_role: false, ..sufficient() }, "settings of the role app"),
            (DatabaseProperties { owns_tables: false, ..sufficient() }, "another role"),
        ] {
            let unmet = facts.unmet("app");
            assert_eq!(unmet.len(), 1, "{unmet:?}");
            assert!(unmet[0].contains(named), "{unmet:?}");
        }
    }
}

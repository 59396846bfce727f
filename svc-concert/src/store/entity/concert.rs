//! The table `concert`.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "concert")]
pub(crate) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub(crate) id: Uuid,
    pub(crate) organizer: Uuid,
    pub(crate) venue: Uuid,
    pub(crate) title: String,
    pub(crate) description: String,
    pub(crate) genre: String,
    pub(crate) start_time: DateTimeUtc,
    pub(crate) end_time: DateTimeUtc,
    pub(crate) sale_open_time: DateTimeUtc,
    pub(crate) sale_close_time: DateTimeUtc,
    pub(crate) prices: String,
    pub(crate) max_seats_per_fan: i16,
    pub(crate) state: i16,
    pub(crate) has_sale_begun: bool,
    pub(crate) unbooked_places: Option<i64>,
    pub(crate) count_time: Option<DateTimeUtc>,
    pub(crate) version: i64,
    pub(crate) create_time: DateTimeUtc,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(crate) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

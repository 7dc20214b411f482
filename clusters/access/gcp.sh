#!/bin/sh
# The account of the workers of clusters/gcp.yaml: it reads and writes the bucket, and nothing else.
# Once for a project, after `gcloud auth application-default login`:
#
#     sh clusters/access/gcp.sh PROJECT BUCKET
set -eu
project=$1 bucket=$2
gcloud services enable compute.googleapis.com iam.googleapis.com \
    cloudresourcemanager.googleapis.com --project "$project"
account=vit-worker@$project.iam.gserviceaccount.com
gcloud iam service-accounts describe "$account" --project "$project" > /dev/null 2>&1 ||
    gcloud iam service-accounts create vit-worker --project "$project"
gcloud storage buckets add-iam-policy-binding "gs://$bucket" --role roles/storage.objectUser \
    --member "serviceAccount:$account"
